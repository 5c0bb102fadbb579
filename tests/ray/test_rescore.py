"""Replays in real Ray actors: another judge, no model asked, and nothing scored twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dat_ray.config.schema import Recipe
from dat_ray.data.shards import read_table, write_shard
from dat_ray.errors import InputError, ShardError
from dat_ray.evaluation.rescore import read_record, score_again
from dat_ray.evaluation.stage import evaluate
from tests.ray.tiny_evaluation import HELD_OUT, LOOK_ALIKES, SAMPLES, Faults, engines, strict_engines, tiny_recipe, tiny_run

pytestmark = pytest.mark.usefixtures("ray_cluster")

ATTEMPTS = 2 * (HELD_OUT * (1 + SAMPLES) + LOOK_ALIKES)


@pytest.fixture(scope="module")
def evaluated(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """A finished evaluation, whose run directory is gone: its folder must be enough."""
    folder = tmp_path_factory.mktemp("replay")
    (folder / "notes").mkdir()
    recipe = tiny_recipe()
    run = tiny_run(folder / "run", recipe)
    evaluate(recipe, run, engines=engines(Faults(str(folder / "notes"))))
    shutil.move(run.evaluation("default"), folder / "default")
    shutil.rmtree(folder / "run")
    return folder / "default", recipe


def asked(notes: Path) -> int:
    faults = Faults(str(notes))
    return sum(len(faults.noted(kind)) for kind in ("base", "adapted", "drawn", "built"))


def test_another_judge_scores_the_same_completions_without_a_model(
    evaluated: tuple[Path, Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, recipe = evaluated
    shutil.copytree(source, tmp_path / "default")
    notes = tmp_path / "notes"
    notes.mkdir()
    root, record = read_record(str(tmp_path / "default"))
    assert Recipe.model_validate(record["recipe"]) == recipe
    assert list(record["models"]) == ["base", "adapted"]
    done = score_again(root, record, recipe, "again", strict_engines(Faults(str(notes))))
    assert (done.rows, done.errors, done.skipped) == (ATTEMPTS, 0, False)
    assert asked(notes) == 0

    before = {row["attempt_id"]: row for row in read_table(root).to_pylist()}
    after = {row["attempt_id"]: row for row in read_table(done.root).to_pylist()}
    assert before.keys() == after.keys()
    verdict = {"judge", "verdict", "score"}
    for key, row in after.items():
        assert {k: v for k, v in row.items() if k not in verdict} == {k: v for k, v in before[key].items() if k not in verdict}
        assert (row["judge"], row["verdict"]) == ("strict-judge", "not_harmful")
    metrics = json.loads((Path(done.root) / "metrics.json").read_text())
    assert metrics["judge"]["name"] == "strict-judge"
    assert metrics["judge"]["deviations"] == ["is stricter than the published one"]
    assert capsys.readouterr().err.count("judge: strict-judge is stricter than the published one; ") == 1
    assert metrics["replay"]["suite"] == "default"
    old = json.loads((source / "metrics.json").read_text())
    assert (metrics["models"]["base"]["boa"]["asr"], old["models"]["base"]["boa"]["asr"]) == (0.0, 1.0)
    # What no judge changes is the same.
    assert metrics["models"]["adapted"]["target_logprob"] == old["models"]["adapted"]["target_logprob"]
    assert metrics["sampler"] == old["sampler"]
    assert len(Faults(str(notes)).noted("judged")) == ATTEMPTS

    # The same again does nothing; a replay that was killed goes on where it stopped, asks again about a row for which its judge
    # was out of reach, and can itself be replayed.
    assert score_again(root, record, recipe, "again", strict_engines(Faults(str(notes)))).skipped
    shards = sorted(Path(done.root).glob("part-*.parquet"))
    rows_lost = pq.read_table(shards[0]).num_rows
    shards[0].unlink()
    table = pq.read_table(shards[1])
    failed = {"judge": None, "verdict": None, "score": None, "error": "judge: out of reach"}
    first, *others = table.to_pylist()
    write_shard(done.root, shards[1].name, pa.Table.from_pylist([first | failed, *others], schema=table.schema))
    (Path(done.root) / "_manifest.json").unlink()
    again = score_again(root, record, recipe, "again", strict_engines(Faults(str(notes))))
    assert (again.rows, again.errors, again.skipped) == (ATTEMPTS, 0, False)
    assert len(Faults(str(notes)).noted("judged")) == ATTEMPTS + rows_lost + 1
    assert pq.read_table(shards[1]).to_pylist() == [first, *others]
    second_root, second_record = read_record(done.root)
    back = score_again(second_root, second_record, recipe, "back", engines(Faults(str(notes))))
    assert back.metrics.models["base"].boa.model_dump() == old["models"]["base"]["boa"]

    with pytest.raises(InputError, match="holds another evaluation"):
        score_again(second_root, second_record, recipe, "default", engines(Faults(str(notes))))


def test_altered_completions_are_not_scored(evaluated: tuple[Path, Recipe], tmp_path: Path) -> None:
    source, recipe = evaluated
    shutil.copytree(source, tmp_path / "default")
    shard = next((tmp_path / "default").glob("part-*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-8])
    root, record = read_record(str(tmp_path / "default"))
    with pytest.raises(ShardError, match=shard.name):
        score_again(root, record, recipe, "again", strict_engines(Faults(str(tmp_path))))


def test_what_cannot_be_replayed_is_said(evaluated: tuple[Path, Recipe], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished evaluation"):
        read_record(str(tmp_path))
    shutil.copytree(evaluated[0], tmp_path / "old")
    (tmp_path / "old" / "replay.json").unlink()
    with pytest.raises(InputError, match="older versions"):
        read_record(str(tmp_path / "old"))
