"""What the driver says of a training while its workers train."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dat_ray.config.schema import Recipe
from dat_ray.data.checkpoints import STATE, read_sealed, save_at, seal
from dat_ray.data.rundir import RunDir
from dat_ray.errors import DatError, StorageError
from dat_ray.progress import Progress, stage_line
from dat_ray.training import ray_checkpoints
from dat_ray.training.counts import ResponseCount, TableCount, write_counts
from dat_ray.training.driver import _live_progress
from dat_ray.training.train_workers import LinesForDriver
from dat_ray.training.trainer import WorkerInfo


def test_what_became_of_the_rows_is_said_once_and_sets_the_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "behaviors": {"path": "x", "heldout": {"path": "x"}},
            "sampler": {"model": "x"},
            "target": {"model": "x"},
            "training": {"epochs": 2, "harmful_rows": 4, "retain": {"path": "x"}},
        }
    )
    run, responses = RunDir(str(tmp_path)), ResponseCount(0, 3, 100, 80)
    counts = {"harmful": TableCount(10, ("c1", "c7"), {"target": responses, "refusal": responses}, 128, 8)}
    # Ten rows would be five updates of two epochs; the eight that have room are four.
    with Progress("train", 5, "updates", stream=io.StringIO()) as progress:
        with _live_progress(run, recipe, progress):
            write_counts(run.training(0), counts)
        assert progress.total == 4
        with _live_progress(run, recipe, progress):
            pass
    said = capsys.readouterr().err
    assert (
        said.count("harmful rows: 8, prompts whole; targets cut: 3 to the room behind the prompt (80% of their tokens kept)") == 2
    )
    assert "2 of 10 left out, whose prompts leave no room for 8 response tokens in 128 (c1, c7)" in said


def test_what_a_worker_says_is_shown_by_the_driver_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The output of Ray's workers goes nowhere."""
    before = LinesForDriver(str(tmp_path))
    with before.written():
        stage_line("an earlier session's line")
    waiting, worker = LinesForDriver(str(tmp_path)), LinesForDriver(str(tmp_path))

    def shown() -> list[str]:
        capsys.readouterr()
        waiting.show()
        return [line.partition(" UTC ")[2] for line in capsys.readouterr().err.splitlines()]

    with worker.written():
        stage_line("checkpoint damaged: a")
    assert shown() == ["checkpoint damaged: a"]
    assert shown() == []
    with worker.written():
        stage_line("going on: b")
    stage_line("not the worker's")
    assert shown() == ["going on: b"]


class Broadcast:
    """What the first worker says to the others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: Any = None
        monkeypatch.setattr(ray_checkpoints, "broadcast_from_rank_zero", self)

    def __call__(self, value: Any) -> Any:
        self.said = self.said if value is None else value
        return self.said


def _three_checkpoints(root: Path) -> None:
    for number in (4, 8, 12):
        save_at(str(root), f"update-{number:08d}", partial(seal, state={"updates_done": number}))
    (root / "update-00000012" / STATE).write_text("")


def _updates(folder: Path) -> int:
    return int(read_sealed(folder)["updates_done"])


def test_all_workers_go_on_from_the_checkpoint_that_the_first_one_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _three_checkpoints(tmp_path)
    first, second = (ray_checkpoints.RayCheckpoints(str(tmp_path), WorkerInfo(rank, 2)) for rank in (0, 1))
    told = Broadcast(monkeypatch)
    assert first.load(_updates) == 8
    assert told.said == ("update-00000008", "")
    # Whatever the second one sees of the newest, as on a file system that shows files late.
    save_at(str(tmp_path), "update-00000012", lambda folder: seal(folder, {"updates_done": 12}))
    assert second.load(_updates) == 8
    (tmp_path / "update-00000008" / STATE).unlink()
    with pytest.raises(StorageError, match=r"update-00000008 is another one for worker 1 \(FileNotFoundError"):
        second.load(_updates)


def test_workers_hear_of_what_the_first_one_refuses_and_of_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (ray_checkpoints.RayCheckpoints(str(tmp_path), WorkerInfo(rank, 2)) for rank in (0, 1))
    Broadcast(monkeypatch)
    assert (first.load(_updates), second.load(_updates)) == (0, 0)
    _three_checkpoints(tmp_path)

    def refuse(_folder: Path) -> int:
        raise DatError("a checkpoint of another run")

    for worker in (first, second):
        with pytest.raises(DatError, match="of another run"):
            worker.load(refuse)
