"""The training of `dat adapt` in several Ray Train workers, each a thin shell around `dat_ray.training.adaptation.adapt`.

The checkpoints are those of one process, in a folder that all nodes share: started again, by Ray Train or by `--resume`,
the workers go on from the newest.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ray.train.torch import get_device

from dat_ray.config.adapt import AdaptRecipe
from dat_ray.config.cluster import ClusterConfig, Pool
from dat_ray.diagnosis import StallWatch, answer_for_stacks
from dat_ray.errors import InputError
from dat_ray.models.embedded import resolve_model
from dat_ray.models.loading import DTYPES, load_causal_lm, model_fingerprint, use_tensor_cores
from dat_ray.pipeline.adapt_data import prepare
from dat_ray.progress import Progress
from dat_ray.raysession import start_ray
from dat_ray.training.adaptation import CHECKPOINTS, UNIT, adapt, curve_note, save_adapted
from dat_ray.training.ray_checkpoints import RayCheckpoints
from dat_ray.training.train_workers import (
    LinesForDriver,
    WorkerGroup,
    model_for_workers,
    polled,
    run_workers,
    this_worker,
    without_retry,
)
from dat_ray.training.update_metrics import read_metrics


def adapt_in_workers(base: str, root: Path, recipe: AdaptRecipe, progress: Progress) -> None:
    """Trains in `trainer.min_actors` workers, from the newest checkpoint where there is one.

    Args:
        base: as it was given: a worker builds an embedded model on its own node.
        root: folder of the sampler, held by this process, with `pairs.jsonl`; `training/` and Ray Train's `ray/` go there.
        recipe: with a mask token.
        progress: shows what the workers log.

    Raises:
        DatError: see `dat_ray.training.train_workers.run_workers`.
        InputError: a worker's node does not see `root`.
    """
    pool = Pool(max_actors=recipe.trainer.min_actors, **recipe.trainer.model_dump())
    timeouts = recipe.timeouts
    stall = StallWatch("adapt", str(root / "training-stall.txt"), timeouts.no_progress + timeouts.worker_group_start)

    lines = LinesForDriver(str(root))

    def show() -> int:
        lines.show()
        return _show(root / "training", progress)

    group = WorkerGroup(
        verb="adapt",
        name="state",
        storage=str(root / "ray"),
        pool=pool,
        section="trainer",
        start_seconds=timeouts.worker_group_start,
        wait_seconds=timeouts.no_progress,
    )
    settings = {"recipe": recipe.model_dump_json(), "root": str(root), "model": model_for_workers(base)}
    with start_ray(ClusterConfig()), _marked(root) as mark, polled(show, stall):
        run_workers(adapt_worker, settings | {"mark": mark}, group)


def adapt_worker(config: dict[str, str]) -> Any:
    """One Ray Train worker; returns an error that a retry would not mend."""
    return without_retry(_work, config)


def _work(config: dict[str, str]) -> None:
    answer_for_stacks()
    recipe, root = AdaptRecipe.model_validate_json(config["recipe"]), Path(config["root"])
    if not (root / config["mark"]).exists():
        raise InputError("--out", str(root), f"{socket.gethostname()} does not see this folder: name one that all nodes share")
    torch.set_num_threads(recipe.threads)
    worker, training = this_worker(), root / "training"
    folder = resolve_model(config["model"], "BASE")
    data = prepare(folder, recipe, root / "pairs.jsonl")
    use_tensor_cores(DTYPES[recipe.dtype])
    model = load_causal_lm(folder, recipe.dtype).to(get_device())
    checkpoints = RayCheckpoints(str(training / CHECKPOINTS), worker, UNIT)
    with LinesForDriver(str(root)).written_by(worker):
        adapted = adapt(model, data.split, recipe.training, training, checkpoints, worker=worker)
        if worker.rank == 0:
            save_adapted(adapted.model, training, model_fingerprint(folder))


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


def _show(training: Path, progress: Progress) -> int:
    """Shows the last row of the curve; returns its step."""
    rows = read_metrics(str(training))
    if not rows:
        return 0
    done = int(rows[-1][UNIT])
    progress.update(done, curve_note(rows[-1]))
    return done
