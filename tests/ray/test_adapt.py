"""`dat adapt` in two real Ray Train workers: like one, killed, stopped and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from dat_ray.config.adapt import AdaptRecipe
from dat_ray.errors import DatError
from dat_ray.models.adapters import ADAPTER_WEIGHTS
from dat_ray.pipeline import adapt_workers
from dat_ray.pipeline.adapt import adapt_model
from dat_ray.training import train_workers as workers
from tests.ray.tiny_generation import await_release, release
from tests.ray.worker_processes import killed_once, training_workers
from tests.unit.pipeline.tiny_adaptation import adapt_recipe, pairs_table, tiny_chat_model

STEPS = 32


def recipe(count: int) -> AdaptRecipe:
    plain = adapt_recipe(steps=STEPS, checkpoint_every=4, evaluate_every=1)
    return AdaptRecipe.model_validate(plain.model_dump() | {"trainer": {"min_actors": count}})


def curve(out: Path) -> list[dict]:
    lines = (out / "training" / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def adapter(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "training" / "adapter" / ADAPTER_WEIGHTS)


def held_worker(notes: Path, step: int) -> Callable[[dict[str, str]], Any]:
    """`adapt_workers.adapt_worker`, except that it waits before this step until `tiny_generation.release(notes)`."""

    def work(config: dict[str, str]) -> Any:
        from dat_ray.pipeline import adapt_workers
        from dat_ray.training.adaptation import Adaptation

        take_update = Adaptation.update

        def held(objective: Any, trainer: Any, update: int) -> Any:
            if update == step:
                await_release(notes)
            return take_update(objective, trainer, update)

        with patch.object(Adaptation, "update", held):
            return adapt_workers.adapt_worker(config)

    return work


@contextmanager
def killed_after(steps: int, out: Path, notes: Path) -> Iterator[list[int]]:
    """Kills a worker once there is a checkpoint of that many steps; two steps on the adaptation waits for that."""
    notes.mkdir()

    def kept() -> bool:
        done = [name.name.removeprefix("step-") for name in (out / "training" / "checkpoints").glob("step-*")]
        return any(int(step) >= steps for step in done if step.isdigit())  # others are being written

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapt_workers, "adapt_worker", held_worker(notes, steps + 2))
        with killed_once(training_workers, kept, lambda: release(notes)) as killed:
            yield killed


@dataclass(frozen=True)
class Adapted:
    """What is adapted, and the folder of what two workers that nobody disturbed made of it."""

    base: str
    table: str
    two: Path


@pytest.fixture(scope="module")
def adapted(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    root = tmp_path_factory.mktemp("adapted")
    base, table = tiny_chat_model(root / "base", "llama"), pairs_table(root / "table.csv")
    sampler = adapt_model(base, str(root / "two"), recipe(2), pairs=table)
    assert (sampler / "model.safetensors").exists()
    return Adapted(base, table, root / "two")


@pytest.mark.drill
@pytest.mark.slow
def test_two_workers_make_the_sampler_that_one_makes(adapted: Adapted, tmp_path: Path) -> None:
    one, two = tmp_path / "one", adapted.two
    threads = torch.get_num_threads()
    adapt_model(adapted.base, str(one), recipe(1), pairs=adapted.table)
    torch.set_num_threads(threads)
    assert [line["step"] for line in curve(two)] == list(range(1, STEPS + 1))
    # Gradients are added in another order, and Adam's first steps magnify what rounding makes of a tiny one.
    for alone, shared in zip(curve(one), curve(two), strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], abs=1e-2)
        assert shared["masked_tokens"] == alone["masked_tokens"]
    different = sum(int((adapter(two)[name] - tensor).abs().gt(1e-3).sum()) for name, tensor in adapter(one).items())
    assert different <= 0.01 * sum(tensor.numel() for tensor in adapter(one).values())


@pytest.mark.drill
@pytest.mark.fault
@pytest.mark.slow
def test_workers_that_are_killed_make_the_sampler_that_others_make(
    adapted: Adapted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, table, two, torn = adapted.base, adapted.table, adapted.two, tmp_path / "torn"
    with monkeypatch.context() as patch, killed_after(4, torn, tmp_path / "first") as killed:
        patch.setattr(workers, "MAX_FAILURES", 0)
        with pytest.raises(DatError, match=r"training workers failed 1 times.* --resume goes on from it"):
            adapt_model(base, str(torn), recipe(2), pairs=table)
    assert len(killed) == 1
    assert not (torn / "training" / "result.json").exists()
    with killed_after(16, torn, tmp_path / "second") as killed:
        adapt_model(base, str(torn), recipe(2), pairs=table, resume=True)
    assert len(killed) == 1
    assert curve(torn) == curve(two), "a sum of two terms does not depend on their order"
    assert all(torch.equal(adapter(torn)[name], tensor) for name, tensor in adapter(two).items())
    results = [json.loads((out / "training" / "result.json").read_text()) for out in (torn, two)]
    assert results[0] == results[1]
    assert not list(torn.glob("_shared-*"))
