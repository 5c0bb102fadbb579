"""The training of `dat adapt` in several Ray Train workers, each a thin shell around `dat_ray.diffusion.adapt.adapt`.

The checkpoints are those of one process, in a folder that all nodes share: started again, by Ray Train or by `--resume`,
the workers go on from the newest.
"""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train.torch import get_device

from dat_ray.config.adapt import AdaptRecipe
from dat_ray.config.cluster import ClusterConfig, Pool
from dat_ray.diagnosis import StallWatch, answer_for_stacks
from dat_ray.diffusion.adapt import Share, adapt
from dat_ray.errors import InputError
from dat_ray.models.embedded import resolve_model
from dat_ray.models.loading import DTYPES, load_causal_lm, use_tensor_cores
from dat_ray.pipeline.adapt_data import prepare
from dat_ray.progress import Progress
from dat_ray.raysession import start_ray
from dat_ray.training.workers import LinesForDriver, polled, run_workers, sum_over_workers, without_retry


def adapt_in_workers(base: str, root: Path, recipe: AdaptRecipe, progress: Progress) -> None:
    """Trains in `trainer.min_actors` workers, from the newest checkpoint where there is one.

    Args:
        base: as it was given: a worker builds an embedded model on its own node.
        root: folder of the sampler, held by this process, with `pairs.jsonl`; `training/` and Ray Train's `ray/` go there.
        recipe: with a mask token.
        progress: shows what the workers log.

    Raises:
        DatError: see `dat_ray.training.workers.run_workers`.
        InputError: a worker's node does not see `root`.
    """
    model = str(Path(base).absolute()) if Path(base).is_dir() else base
    pool = Pool(max_actors=recipe.trainer.min_actors, **recipe.trainer.model_dump())
    timeouts = recipe.timeouts
    stall = StallWatch("adapt", str(root / "training-stall.txt"), timeouts.no_progress + timeouts.worker_group_start)

    lines = LinesForDriver(str(root))

    def show() -> int:
        lines.show()
        return _show(root / "training" / "metrics.jsonl", progress)

    with start_ray(ClusterConfig()), _marked(root) as mark, polled(show, stall):
        run_workers(
            adapt_worker,
            {"recipe": recipe.model_dump_json(), "root": str(root), "model": model, "mark": mark},
            verb="adapt",
            name="state",
            storage=str(root / "ray"),
            pool=pool,
            section="trainer",
            start_seconds=timeouts.worker_group_start,
            wait_seconds=timeouts.no_progress,
        )


def adapt_worker(config: dict[str, str]) -> Any:
    """One Ray Train worker; returns an error that a retry would not mend."""
    return without_retry(_work, config)


def _work(config: dict[str, str]) -> None:
    answer_for_stacks()
    recipe, root = AdaptRecipe.model_validate_json(config["recipe"]), Path(config["root"])
    if not (root / config["mark"]).exists():
        raise InputError("--out", str(root), f"{socket.gethostname()} does not see this folder: name one that all nodes share")
    torch.set_num_threads(recipe.threads)
    context = ray.train.get_context()
    share = Share(context.get_world_rank(), context.get_world_size(), sum_over_workers)
    folder = resolve_model(config["model"], "BASE")
    data = prepare(folder, recipe, root / "pairs.jsonl")
    use_tensor_cores(DTYPES[recipe.dtype])
    model = load_causal_lm(folder, recipe.dtype).to(get_device())
    with LinesForDriver(str(root)).written() if share.rank == 0 else nullcontext():
        adapt(model, data.train, data.heldout, recipe.training, root / "training", resume=True, share=share)


@contextmanager
def _marked(root: Path) -> Iterator[str]:
    """A file of a new name by which a worker knows that it sees this folder, not one of the same name."""
    for old in root.glob("_shared-*"):
        old.unlink()
    mark = root / f"_shared-{uuid.uuid4().hex}"
    mark.touch()
    try:
        yield mark.name
    finally:
        mark.unlink(missing_ok=True)


def _show(metrics: Path, progress: Progress) -> int:
    """Shows the last whole line of the curve; returns its step."""
    if not metrics.exists():
        return 0
    lines = [line for line in metrics.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    if not lines:
        return 0
    last = json.loads(lines[-1])
    progress.update(
        last["step"], f"loss {last['loss']:.2f}" + (f", gain {last['gain']:.3f} nats/token" if "gain" in last else "")
    )
    return int(last["step"])
