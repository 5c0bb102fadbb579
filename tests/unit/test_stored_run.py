"""A run directory that version 0.1 wrote (see `tests/fixtures/make_run_0_1.py`) still opens, and goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import MagicMock

import pyarrow as pa
import pytest

from dat_ray.cli import main
from dat_ray.config.loading import fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir, open_run
from dat_ray.data.schemas import CANDIDATES, REQUESTS
from dat_ray.data.shards import read_file, read_manifest, read_table, scan_shards, write_shard
from dat_ray.errors import InputError
from dat_ray.evaluation.stage import evaluate
from dat_ray.generation.select import select
from dat_ray.generation.stage import generate
from dat_ray.models.identity import RECORD
from dat_ray.ops.status import read_status
from dat_ray.training.checkpoint import FolderCheckpoints
from dat_ray.training.driver import _checkpoints, train
from dat_ray.training.retain_set import prepare_retain

STORED = Path(__file__).parents[1] / "fixtures" / "run_0_1"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORED, tmp_path / "run"))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def recorded(root: Path) -> dict:
    return json.loads((root / "run.json").read_text())


def test_it_is_of_that_version(root: Path) -> None:
    record = recorded(root)
    assert record["recipe"]["round"] == 0
    recipe = Recipe.model_validate(record["recipe"])
    assert record["fingerprint"] != fingerprint(recipe)
    # What a replay of its evaluation goes by.
    stored = json.loads((root / "evaluation" / "default" / "replay.json").read_text())["recipe"]
    assert stored["round"] == 0
    assert Recipe.model_validate(stored) == recipe


def test_it_is_looked_at_and_left_as_it_is(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(root)
    status = read_status(str(root))
    assert {stage["stage"]: stage["state"] for stage in status["stages"]} == {
        "generate": "complete",
        "select": "complete",
        "train": "complete",
        "evaluate": "complete",
        "report": "not started",
    }
    assert status["fingerprint"] == recorded(root)["fingerprint"]
    assert main(["status", str(root)]) == 0
    assert main(["report", "--run-dir", str(root), "--out", str(tmp_path / "page")]) == 0
    assert recorded(root)["fingerprint"] in (tmp_path / "page" / "index.html").read_text()
    assert main(["curves", str(root), "--out", str(tmp_path / "curves")]) == 0
    assert "does not know" not in capsys.readouterr().err
    assert contents(root) == before


def test_every_finished_stage_is_taken_as_done(root: Path) -> None:
    before = contents(root)
    recipe = Recipe.model_validate(recorded(root)["recipe"])
    with pytest.raises(InputError, match="--resume"):
        open_run(str(root), recipe, resume=False)
    run = open_run(str(root), recipe, resume=True)
    assert run.fingerprint_of(recipe) == recorded(root)["fingerprint"]
    assert generate(recipe, run).skipped
    assert select(run, recipe).skipped
    assert prepare_retain(recipe, run, complete=lambda prompts: pytest.fail("asks the model")).skipped
    assert train(recipe, run).skipped
    assert evaluate(recipe, run).skipped
    # From now on it is known which weights it goes on with.
    new = contents(root)
    assert {name: data for name, data in new.items() if not name.endswith(RECORD)} == before


def test_a_round_that_it_left_unfinished_is_finished_with_the_ids_that_it_stored(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the round's two shards one is lost; the plan, which needs Ray, is replaced by one that writes what it lacks."""
    recipe = Recipe.model_validate(recorded(root)["recipe"])
    run = open_run(str(root), recipe, resume=True)
    folder = Path(run.candidates(0))
    stored = read_table(str(folder))
    lost = read_manifest(str(folder)).files[0].path
    expected = read_file(str(folder / lost))
    for name in ("_manifest.json", lost):
        (folder / name).unlink()

    def plan(recipe: Recipe, requests: str, root: str, *_: object) -> None:
        held = {
            identifier for name in scan_shards(root) for identifier in read_file(f"{root}/{name}")["candidate_id"].to_pylist()
        }
        rows = [row for row in read_table(requests).to_pylist() if row["candidate_id"] not in held]
        write_shard(root, "part-new.parquet", pa.Table.from_pylist(rows, schema=CANDIDATES))

    for name in ("start_ray", "start_ledger", "Watch", "check_cluster"):
        monkeypatch.setattr(f"dat_ray.generation.stage.{name}", MagicMock())
    monkeypatch.setattr("dat_ray.generation.stage.run_plan", plan)
    report = generate(recipe, run)
    assert (report.rows, report.skipped) == (stored.num_rows, False)
    new = read_file(str(folder / "part-new.parquet"))
    # Which split a row is of was not stored then: its prompts were all for training goals.
    assert set(new["split"].to_pylist()) == {None}
    for column in set(REQUESTS.names) - {"split"}:
        assert new.sort_by("candidate_id")[column].to_pylist() == expected.sort_by("candidate_id")[column].to_pylist(), column
    assert read_manifest(str(folder), fingerprint=recorded(root)["fingerprint"]).rows == stored.num_rows


def test_its_training_set_can_be_trained_on_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the adapter gone the stage starts, from the checkpoints that the earlier version left."""
    recipe, started = Recipe.model_validate(recorded(root)["recipe"]), dict[str, str]()
    run = open_run(str(root), recipe, resume=True)
    (Path(run.training(0)) / "_manifest.json").unlink()
    monkeypatch.setattr(
        "dat_ray.training.driver.run_workers",
        lambda work, settings, group: started.update(name=group.name, storage=group.storage),
    )
    assert train(recipe, run).rows == 16
    assert started["name"] == f"ray-{recorded(root)['fingerprint']}"
    left = Path(run.training(0)) / f"state-{recorded(root)['fingerprint']}" / "checkpoint_2026-11-20_10-00-00.000001"
    left.mkdir(parents=True)
    assert FolderCheckpoints(_checkpoints(run.training(0), run.fingerprint_of(recipe))).kept() == [left.name]


def test_another_recipe_is_refused_there(root: Path) -> None:
    tree = recorded(root)["recipe"]
    smaller = Recipe.model_validate(tree | {"target": tree["target"] | {"batch_size": 1}})
    assert open_run(str(root), smaller, resume=True) == RunDir(str(root))
    with pytest.raises(InputError, match=r"another recipe \(seed: 7 -> 8\)"):
        open_run(str(root), Recipe.model_validate(tree | {"seed": 8}), resume=True)
