"""Training in real Ray Train workers: killed, resumed, split, and refused."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

from dat_ray.config.loading import fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import has_manifest, read_manifest
from dat_ray.diagnosis import Actor, job_actors
from dat_ray.errors import DatError, ShardError
from dat_ray.models.adapters import ADAPTER_WEIGHTS
from dat_ray.training import driver, room
from dat_ray.training import train_workers as workers
from dat_ray.training.trainer import Diverged
from dat_ray.training.update_metrics import read_metrics
from tests.ray.tiny_generation import release
from tests.ray.tiny_training import held_worker, in_process, ready_run, tiny_training_recipe
from tests.ray.worker_processes import killed_once, training_workers, updates_kept


@contextmanager
def killed_after(updates: int, recipe: Recipe, run: RunDir) -> Iterator[list[int]]:
    """Kills a training worker once a checkpoint of that many updates is known to Ray Train; two updates on it waits for that."""
    with tempfile.TemporaryDirectory() as notes, pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "train_worker", held_worker(notes, updates + 2))
        when = lambda: updates_kept(recipe, run) >= updates  # noqa: E731
        with killed_once(training_workers, when, lambda: release(notes)) as killed:
            yield killed


@pytest.mark.fault
@pytest.mark.slow
def test_killed_workers_and_a_resumed_job_end_with_the_same_adapter(
    ray_cluster: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_training_recipe(model)
    run = ready_run(tmp_path / "run", recipe)
    training, first = run.training(0), 8

    with monkeypatch.context() as patch, killed_after(first, recipe, run) as killed:
        patch.setattr(workers, "MAX_FAILURES", 0)
        with pytest.raises(DatError, match="training workers failed 1 times"):
            driver.train(recipe, run)
    assert len(killed) == 1
    assert not has_manifest(training)

    before = read_metrics(training)
    with killed_after(16, recipe, run) as killed:
        report = driver.train(recipe, run)
    assert len(killed) == 1

    log = read_metrics(training)
    assert [row["update"] for row in log] == list(range(24))
    assert log[:first] == before[:first], "the second job goes on from the checkpoint of the first: not even the seconds differ"
    found = load_file(Path(report.adapter) / ADAPTER_WEIGHTS)
    expected = in_process(recipe, run, tmp_path / "alone")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert max(tensor.abs().max().item() for name, tensor in found.items() if "lora_B" in name) > 0
    assert (report.updates, report.rows, report.retain_rows, report.skipped) == (24, 10, 7, False)
    assert read_manifest(training).fingerprint == fingerprint(recipe)
    assert list((Path(training) / "tensorboard").iterdir())

    again = driver.train(recipe, run)
    assert again.skipped
    assert again.last == report.last
    assert training_workers() == []
    weights = Path(report.adapter) / ADAPTER_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ShardError, match=r"adapter_model.safetensors is missing or was altered"):
        driver.train(recipe, run)


@pytest.mark.slow
@pytest.mark.parametrize("split", [pytest.param(False, marks=pytest.mark.drill), True], ids=["whole", "split"])
def test_two_workers_train_the_adapter_that_one_trains(split: bool, ray_cluster: str, model: Path, tmp_path: Path) -> None:
    """Each with all of the frozen weights, or with its share of them."""
    recipe = tiny_training_recipe(model, workers=2, updates=4, shard_weights=split)
    run = ready_run(tmp_path / "run", recipe)
    found = load_file(Path(driver.train(recipe, run).adapter) / ADAPTER_WEIGHTS)
    expected = in_process(recipe, run, tmp_path / "alone")
    # A sum in another order differs in the last bits; Adam's first step turns a tiny gradient's sign into a whole step.
    different = sum(int((found[name] - expected[name]).abs().gt(1e-4).sum()) for name in expected)
    assert different <= 0.001 * sum(tensor.numel() for tensor in expected.values())


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: str, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, RunDir]:
    """Two workers that nobody disturbed."""
    recipe = tiny_training_recipe(model, workers=2, updates=8)
    run = ready_run(tmp_path_factory.mktemp("undisturbed") / "run", recipe)
    driver.train(recipe, run)
    return recipe, run


@pytest.mark.drill
@pytest.mark.fault
@pytest.mark.slow
def test_two_workers_of_which_one_is_killed_end_as_two_that_nobody_disturbed(
    undisturbed: tuple[Recipe, RunDir], tmp_path: Path
) -> None:
    recipe, whole = undisturbed
    torn = ready_run(tmp_path / "torn", recipe)
    with killed_after(4, recipe, torn) as killed:
        found = load_file(Path(driver.train(recipe, torn).adapter) / ADAPTER_WEIGHTS)
    assert len(killed) == 1
    expected = load_file(Path(whole.adapter(0)) / ADAPTER_WEIGHTS)

    def curve(run: RunDir) -> list[dict]:
        timed = ("seconds", "seconds_by_part", "cost")
        return [{k: v for k, v in row.items() if k not in timed} for row in read_metrics(run.training(0))]

    assert [row["update"] for row in curve(torn)] == list(range(8))
    assert curve(torn) == curve(whole), "a sum of two terms does not depend on their order"
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.drill
def test_a_damaged_checkpoint_costs_the_updates_since_the_one_before(
    undisturbed: tuple[Recipe, RunDir], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two workers, of which the first chooses for both; what it says comes from the driver."""
    recipe, before = undisturbed
    whole = load_file(Path(before.adapter(0)) / ADAPTER_WEIGHTS)
    run = RunDir(str(shutil.copytree(before.root, tmp_path / "run")))
    (Path(run.training(0)) / "_manifest.json").unlink()
    first, newest = sorted(Path(run.training(0)).glob("state-*/update-*"))
    adapter = newest / "adapter.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-1])
    capsys.readouterr()
    found = load_file(Path(driver.train(recipe, run).adapter) / ADAPTER_WEIGHTS)
    said = [line for line in capsys.readouterr().err.splitlines() if "checkpoint damaged" in line]
    assert len(said) == 1
    assert f"checkpoint damaged: {newest} (" in said[0]
    assert said[0].endswith(f"going on from update 4, {first}")
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert [row["update"] for row in read_metrics(run.training(0))] == list(range(8))


@pytest.mark.slow
def test_divergence_is_told_once_and_not_retried(ray_cluster: str, model: Path, tmp_path: Path) -> None:
    recipe = tiny_training_recipe(model, away_weight=1e39)
    run = ready_run(tmp_path / "run", recipe)
    with pytest.raises(Diverged, match="loss is -inf at update 0; the last checkpoint is kept"):
        driver.train(recipe, run)
    assert not has_manifest(run.training(0))
    assert not Path(run.adapter(0)).exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, (1, 2)], ids=["fixed", "elastic"])
def test_workers_that_nobody_can_place_are_told_within_the_deadline(
    ray_cluster: str, model: Path, tmp_path: Path, workers: int | tuple[int, int]
) -> None:
    recipe = tiny_training_recipe(model, num_cpus=99, workers=workers)
    recipe = recipe.model_copy(update={"timeouts": recipe.timeouts.model_copy(update={"worker_group_start": 3})})
    run = ready_run(tmp_path / "run", recipe)
    # How much is free depends on whether the workers of the test before have left yet.
    message = r"did not start within .* \(3 s\): 1 x \(99 CPU, 0 GPU\) wanted; node \w+: [0-8](\.\d)? of 8 CPU free"
    with pytest.raises(DatError, match=message):
        driver.train(recipe, run)


class TrainController:
    """As Ray's own it is named; it starts once a file is there, and asks for nothing."""

    def __init__(self, go: Path) -> None:
        while not go.exists():
            time.sleep(0.02)

    def pid(self) -> int:
        return os.getpid()


@pytest.mark.drill
def test_the_deadline_for_room_does_not_count_while_the_controller_starts(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine under load took 20 s for it, which was the deadline, with room on two nodes."""
    looks: list[float] = []

    def noted() -> list[Actor]:
        looks.append(time.monotonic())
        return job_actors()

    monkeypatch.setattr(room, "SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr(room, "job_actors", noted)
    controller = ray.remote(num_cpus=0)(TrainController).remote(tmp_path / "go")
    with room.room_within(0.5) as no_room:
        while not looks or looks[-1] - looks[0] < 1.5:
            time.sleep(0.05)
        early = no_room()
        (tmp_path / "go").touch()
        assert not early
        with pytest.raises(ray.exceptions.RayActorError):
            while True:
                ray.get(controller.pid.remote())
                time.sleep(0.05)
        assert no_room()


def test_too_few_rows_fail_before_any_worker_starts(ray_cluster: str, model: Path, tmp_path: Path) -> None:
    recipe = tiny_training_recipe(model)
    run = ready_run(tmp_path / "run", recipe, rows=3)
    with pytest.raises(DatError, match="the training set has 3 rows, one update needs 4"):
        driver.train(recipe, run)
    assert training_workers() == []
