"""Generation on a real Ray cluster: what it writes, and what it does when rows, engines and processes fail."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from dat_ray.config.loading import fingerprint
from dat_ray.data.rundir import RunDir, open_run, read_record
from dat_ray.data.schemas import CANDIDATES
from dat_ray.data.shards import read_file, read_manifest, read_table
from dat_ray.errors import DatError, ShardError
from dat_ray.generation.finish import CHECKPOINT, take_inventory
from dat_ray.generation.stage import GenerationReport, generate
from dat_ray.raysession import start_ray
from tests.ray.tiny_generation import (
    BEHAVIOR_COUNT,
    ROWS,
    ROWS_PER_BLOCK,
    Faults,
    TinyEncoder,
    drawn,
    engines,
    request_ids,
    tiny_recipe,
    tiny_run,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Path, GenerationReport]:
    root = tmp_path_factory.mktemp("undisturbed")
    notes = root / "notes"
    notes.mkdir()
    recipe = tiny_recipe()
    run = tiny_run(root / "run", recipe)
    return run, notes, generate(recipe, run, engines(Faults(str(notes))))


def rows_by_id(run: RunDir) -> dict[str, dict]:
    rows = read_table(run.candidates(0)).to_pylist()
    found = {row["candidate_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def requested(run: RunDir) -> list[str]:
    return request_ids(run, tiny_recipe())


def test_every_row_is_written_once_with_what_each_role_said(undisturbed):
    run, notes, report = undisturbed
    rows = rows_by_id(run)
    assert set(rows) == set(requested(run))
    assert (report.rows, report.errors, report.skipped) == (ROWS, 0, False)
    assert report.nfe == sum(row["prompt_tokens"] for row in rows.values())
    assert read_table(run.candidates(0)).schema.equals(CANDIDATES)
    for row in rows.values():
        assert row["prompt"].startswith("please ")
        assert row["completion"] == f"on {row['prompt']}"
        assert row["target_logprob"] == -len(row["prompt"]) / 100
        assert (row["target_model"], row["judge"], row["adapter"], row["error"]) == ("tiny-target", "tiny-judge", None, None)
        assert row["verdict"] == ("harmful" if row["score"] > 0.5 else "not_harmful")
    assert sorted(drawn(notes)) == sorted(rows)


def test_a_shard_is_one_block(undisturbed):
    files = read_manifest(undisturbed[0].candidates(0)).files
    assert [file.rows for file in files] == [ROWS_PER_BLOCK] * (ROWS // ROWS_PER_BLOCK)


def test_a_finished_stage_is_skipped(undisturbed):
    run, notes, report = undisturbed
    before = {path: path.stat().st_mtime_ns for path in Path(run.root).rglob("*")}
    again = generate(tiny_recipe(), run, engines(Faults(str(notes), no_start=True)))
    assert again == replace(report, seconds=0.0, skipped=True)
    assert {path: path.stat().st_mtime_ns for path in Path(run.root).rglob("*")} == before


def test_another_recipe_is_refused(undisturbed):
    other = tiny_recipe(sampler={"temperature": 0.5})
    with pytest.raises(ShardError, match=f"belongs to recipe {fingerprint(tiny_recipe())}, this one is {fingerprint(other)}"):
        generate(other, undisturbed[0], engines(Faults("")))


@pytest.mark.fault
def test_a_shard_cut_short_is_made_again_and_nothing_else(undisturbed, tmp_path, capsys):
    shutil.copytree(undisturbed[0].root, tmp_path / "run")
    run = RunDir(str(tmp_path / "run"))
    folder = Path(run.candidates(0))
    cut = folder / read_manifest(str(folder)).files[3].path
    lost = set(read_file(str(cut))["candidate_id"].to_pylist())
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(ShardError, match=r"has sha256 .* its manifest says"):
        read_table(str(folder))

    (folder / "_manifest.json").unlink()
    report = generate(tiny_recipe(), run, engines(Faults(str(tmp_path))))
    assert report.errors == 0
    assert set(drawn(tmp_path)) == lost
    assert len(drawn(tmp_path)) == ROWS_PER_BLOCK
    assert rows_by_id(run) == rows_by_id(undisturbed[0])
    assert f"{cut.name} is cut short" in capsys.readouterr().err


@pytest.mark.fault
def test_rows_and_processes_that_fail_cost_themselves_only(undisturbed, tmp_path):
    run = tiny_run(tmp_path / "run", tiny_recipe())
    bad, deadly = requested(run)[10], requested(run)[50]
    faults = Faults(str(tmp_path), raise_on=(bad,), exit_on=(deadly,), exit_once=True, dead_engine_once=True)
    report = generate(tiny_recipe(), run, engines(faults))
    assert (tmp_path / "exited").exists()
    assert (tmp_path / "dead").exists()
    assert report.errors == 2

    found, expected = rows_by_id(run), rows_by_id(undisturbed[0])
    assert found[bad]["error"] == f"sampler: ValueError: cannot in-paint {bad}"
    assert found[deadly]["error"].startswith("sampler: 3 processes ended on this row")
    assert found[bad]["completion"] is found[deadly]["prompt"] is found[deadly]["score"] is None
    assert {i: row for i, row in found.items() if i not in (bad, deadly)} == {
        i: row for i, row in expected.items() if i not in (bad, deadly)
    }
    listed = {row["candidate_id"] for row in read_table(str(Path(run.candidates(0)) / "errors")).to_pylist()}
    assert listed == {bad, deadly}


def test_too_many_errors_stop_the_stage_and_a_mended_engine_finishes_it_in_smaller_batches(undisturbed, tmp_path):
    run = tiny_run(tmp_path / "run", tiny_recipe())
    # 0.2 of 96 rows may fail: 19. The last 20 always do.
    bad = requested(run)[-20:]
    with pytest.raises(DatError, match=r"20 of 96 rows failed, more than generation.max_error_rate = 0.2 .* sampler: ValueError"):
        generate(tiny_recipe(), run, engines(Faults(str(tmp_path), raise_on=tuple(bad))))
    assert "cannot in-paint" in (Path(run.logs) / "generate-round-0-failure.txt").read_text()
    done = {
        identifier
        for path in (Path(run.candidates(0)) / CHECKPOINT).glob("*.parquet")
        if not path.name.endswith(".pending.parquet")
        for identifier in read_file(str(path))["candidate_id"].to_pylist()
    }

    notes = tmp_path / "mended"
    notes.mkdir()
    smaller = tiny_recipe(sampler={"batch_size": 2}, target={"batch_size": 3, "kv_cache_gib": 0.5})
    report = generate(smaller, tiny_run(run.root, smaller), engines(Faults(str(notes))))
    assert report.errors <= 19
    assert not done & set(drawn(notes))
    expected = rows_by_id(undisturbed[0])
    assert all(row["error"] or row == expected[identifier] for identifier, row in rows_by_id(run).items())


@pytest.mark.drill
def test_a_round_that_version_0_1_left_unfinished_is_finished(tmp_path):
    """As `tests/fixtures/make_run_0_1.py` left it, less one of its two shards: ids and seeds stay as they were stored."""
    root = shutil.copytree(Path(__file__).parents[1] / "fixtures" / "run_0_1", tmp_path / "run")
    recipe = read_record(RunDir(str(root))).recipe
    run = open_run(str(root), recipe, resume=True)
    expected = read_table(run.candidates(0)).sort_by("candidate_id")
    files = read_manifest(run.candidates(0)).files
    lost = set(read_file(f"{run.candidates(0)}/{files[0].path}")["candidate_id"].to_pylist())
    for name in ("_manifest.json", files[0].path):
        (Path(run.candidates(0)) / name).unlink()
    report = generate(recipe, run, engines(Faults(str(tmp_path))))
    assert (report.rows, report.errors, report.skipped) == (16, 0, False)
    assert set(drawn(tmp_path)) == lost
    assert len(lost) == 8
    rows = read_table(run.candidates(0), fingerprint=run.fingerprint_of(recipe)).sort_by("candidate_id")
    # The new rows say with which weights they were drawn, which the version did not; columns that it did not know are empty.
    known = [name for name in expected.schema.names if name != "sampler"]
    assert rows.select(known) == expected.select(known)
    assert all(rows[name].null_count == 16 for name in set(rows.schema.names) - set(expected.schema.names))
    assert {row["sampler"] for row in rows.to_pylist() if row["candidate_id"] in lost} == {"tiny"}


def test_rows_that_no_judge_could_be_asked_about_stop_the_stage_and_are_made_again(undisturbed, tmp_path, capsys):
    run = tiny_run(tmp_path / "run", tiny_recipe())
    away = Faults(str(tmp_path), judge_away=tuple(f"goal {number}" for number in range(6)))
    with pytest.raises(DatError, match=r"rows failed, more than generation.max_error_rate = 0.2 .* judge: status 429: slow down"):
        generate(tiny_recipe(), run, engines(away))
    # Whether a shard with such rows was written before the stage stopped is up to the machine.
    stored = take_inventory(run.candidates(0))
    unjudged = len(stored.ids - stored.to_resume().ids)
    again = tmp_path / "again"
    again.mkdir()
    assert generate(tiny_recipe(), run, engines(Faults(str(again)))).errors == 0
    said = f"no judge could be asked about {unjudged} rows: they are made again" in capsys.readouterr().err
    assert said == (unjudged > 0)
    assert rows_by_id(run) == rows_by_id(undisturbed[0])


def test_prompts_for_harmless_requests_are_drawn_beside_the_others_compared_and_not_judged(tmp_path):
    recipe = tiny_recipe(encoder={}, generation={"samples_per_target": 2, "harmless_samples_per_target": 3})
    requests = ("bake 9 cakes", "sing 7 songs")
    run = tiny_run(tmp_path / "run", recipe, requests)
    report = generate(recipe, run, engines(Faults(str(tmp_path))))
    rows = rows_by_id(run).values()
    harmless = [row for row in rows if row["split"] == "harmless"]
    assert (report.rows, report.errors, len(harmless)) == (2 * BEHAVIOR_COUNT + 3 * len(requests), 0, 3 * len(requests))
    assert {(row["goal"], row["sample_index"]) for row in harmless} == {(goal, i) for goal in requests for i in range(3)}
    for row in rows:
        asked = row["split"] == "train"
        assert (row["judge"], row["verdict"] is not None) == (("tiny-judge", True) if asked else (None, False))
        assert row["completion"] == f"on {row['prompt']}"
        vectors = TinyEncoder().encode([row["prompt"], row["goal"], *(f"goal {i}" for i in range(BEHAVIOR_COUNT)), *requests])
        cosines = vectors[0] @ vectors[1:].T
        own, training, other = cosines[0], cosines[1 : 1 + BEHAVIOR_COUNT].max(), cosines[1 + BEHAVIOR_COUNT :].max()
        assert row["goal_similarity"] == pytest.approx(own, abs=1e-6)
        assert row["training_goal_similarity"] == pytest.approx(training, abs=1e-6)
        assert row["harmless_similarity"] == pytest.approx(other, abs=1e-6)


def test_an_engine_that_cannot_start_says_why(tmp_path):
    run = tiny_run(tmp_path / "run", tiny_recipe())
    with pytest.raises(DatError, match=r"^the target did not start: OSError: weights not found$"):
        generate(tiny_recipe(), run, engines(Faults(str(tmp_path), no_start=True)))


@pytest.mark.drill
def test_an_engine_that_never_starts_is_given_up_with_the_place_where_it_was(tmp_path):
    recipe = tiny_recipe()
    hasty = recipe.model_copy(update={"timeouts": recipe.timeouts.model_copy(update={"engine_start": 5})})
    run = tiny_run(tmp_path / "run", recipe)
    message = r"^the target did not start within timeouts\.engine_start = 5 s; it was in _target \(tiny_generation\.py:\d+\)$"
    with pytest.raises(DatError, match=message):
        generate(hasty, run, engines(Faults(str(tmp_path), start_hangs=True)))
    assert generate(recipe, run, engines(Faults(str(tmp_path)))).errors == 0


def test_pools_that_do_not_fit_are_refused_before_anything_starts(tmp_path):
    recipe = tiny_recipe(cluster={"target": {"num_cpus": 7}})
    with pytest.raises(DatError, match=r"asks for 10 CPUs .*target 1 x 7 CPU.* there are 8"):
        generate(recipe, tiny_run(tmp_path / "run", recipe), engines(Faults(str(tmp_path))))
    assert drawn(tmp_path) == []


def test_a_session_that_is_there_is_used_and_left_alone():
    with start_ray(tiny_recipe().cluster):
        assert ray.cluster_resources()["CPU"] == 8
    assert ray.is_initialized()
