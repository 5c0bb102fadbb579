"""Fine-tuning on a Ray cluster: Ray Train workers, each a thin shell around `fine_tuning.fine_tune`.

Ray Train restarts workers that die; a restart replays the updates since the newest checkpoint that is not damaged and
ends with the same adapter.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import torch
from ray.train.torch import get_device

from dat_ray import telemetry
from dat_ray.config.schema import Recipe
from dat_ray.data.checkpoints import publish_folder
from dat_ray.data.hold import hold
from dat_ray.data.ids import row_id, seed_from_id
from dat_ray.data.rundir import FIRST_ROUND, RunDir
from dat_ray.data.scratch import remove_abandoned, scratch_folder
from dat_ray.data.shards import (
    has_manifest,
    join,
    open_filesystem,
    write_manifest,
)
from dat_ray.diagnosis import StallWatch, answer_for_stacks
from dat_ray.engines.pinning import pinned
from dat_ray.errors import DatError
from dat_ray.models.adapters import attach_lora, check_lora_targets, load_adapter, save_adapter
from dat_ray.models.chat import ChatFormat
from dat_ray.models.identity import check_weights, models_of
from dat_ray.models.loading import DTYPES, load_causal_lm, load_tokenizer, model_files, model_fingerprint, use_tensor_cores
from dat_ray.models.served import served_model
from dat_ray.progress import Progress, stage_line
from dat_ray.training.checkpoint import RunFingerprint
from dat_ray.training.counts import read_counts, sentences, write_counts
from dat_ray.training.fine_tuning import fine_tune
from dat_ray.training.kept import AdapterKeeper
from dat_ray.training.network import Network
from dat_ray.training.passes import count_updates
from dat_ray.training.ray_checkpoints import RayCheckpoints
from dat_ray.training.sharding import shard_frozen_weights
from dat_ray.training.tracking import open_sinks, wanted_sinks
from dat_ray.training.train_workers import (
    LinesForDriver,
    WorkerGroup,
    model_for_workers,
    polled,
    run_workers,
    this_worker,
    without_retry,
)
from dat_ray.training.trained import check_trained, trained_files
from dat_ray.training.trainer import TrainingFiles
from dat_ray.training.training_rows import count_rows, load_rows
from dat_ray.training.update_metrics import MetricsLog, read_metrics

SECONDS_FOR_WORKERS_TO_END = 10.0


@dataclass(frozen=True)
class TrainReport:
    """What training came to.

    Attributes:
        adapter: folder of the PEFT adapter.
        updates: how many it has seen.
        rows: rows of the training set that were trained on.
        retain_rows: the same of the retain set.
        left_out: rows of all tables whose prompts leave no room for a response.
        cut: responses of all tables that were cut for lack of room.
        seconds: wall clock of this call.
        skipped: the adapter was there already.
        last: metrics of the last update.
    """

    adapter: str
    updates: int
    rows: int
    retain_rows: int
    left_out: int
    cut: int
    seconds: float
    skipped: bool
    last: dict[str, Any]


def train(recipe: Recipe, run: RunDir, round_index: int = FIRST_ROUND) -> TrainReport:
    """Fine-tunes the target on the round's training set, unless it is done; goes on where it was stopped.

    Ray must be initialized.

    Args:
        recipe: its `training`, `target` and `cluster.trainer` sections.
        run: run directory; reads `training_set/round-N` and writes `training/round-N`.
        round_index: N; from 1 on the adapter of the round before is trained further.

    Raises:
        InputError: the target has other weights than when this run began.
        DatError: not enough rows, workers that keep dying, or resources that never came.
        Diverged: a loss or gradient is not finite.
    """
    began = time.monotonic()
    root, mark = _absolute(run.training(round_index)), run.fingerprint_of(recipe)
    harmful, retain = count_rows(recipe, run, round_index)
    updates = count_updates(recipe.training, harmful)
    wanted_sinks(recipe.tracking)
    check_weights(run.root, models_of(recipe, "target"))
    recipe = pinned(recipe, run.root, "target")
    skipped = has_manifest(root)
    if skipped:
        check_trained(root, mark)
    else:
        with hold(run.root):
            with Progress("train", updates, "updates") as progress, _live_progress(run, recipe, progress, round_index):
                _fit(recipe, run, mark, round_index)
            write_manifest(root, trained_files(root), mark)
    log, counts = read_metrics(root), read_counts(root)
    # A training of an earlier version left no counts behind.
    kept = counts["harmful"].kept if counts else harmful
    return TrainReport(
        adapter=run.adapter(round_index),
        updates=count_updates(recipe.training, kept),
        rows=kept,
        retain_rows=counts["retain"].kept if "retain" in counts else retain,
        left_out=sum(len(table.left_out) for table in counts.values()),
        cut=sum(table.cut for table in counts.values()),
        seconds=time.monotonic() - began,
        skipped=skipped,
        last=log[-1] if log else {},
    )


def _fit(recipe: Recipe, run: RunDir, mark: str, round_index: int) -> None:
    model = model_for_workers(recipe.target.model)
    group = WorkerGroup(
        verb="train",
        name=f"ray-{mark}",
        storage=_absolute(run.training(round_index)),
        pool=recipe.cluster.trainer,
        section="cluster.trainer",
        start_seconds=recipe.timeouts.worker_group_start,
        wait_seconds=recipe.timeouts.no_progress,
    )
    settings = {"recipe": recipe.model_dump_json(), "root": _absolute(run.root), "model": model, "round": str(round_index)}
    try:
        run_workers(train_worker, settings, group)
    except KeyboardInterrupt:
        # On other nodes the next training removes what was left.
        remove_abandoned(_scratch_prefix(mark), SECONDS_FOR_WORKERS_TO_END)
        raise


def _scratch_prefix(mark: str) -> str:
    return f"dat-train-{mark}-"


def _checkpoints(root: str, mark: str) -> str:
    """Folder of a training's checkpoints: with the fingerprint in its name, no other recipe's."""
    return join(root, f"state-{mark}")


def train_worker(config: dict[str, str]) -> dict[str, Any] | DatError:
    """One Ray Train worker, from the recipe to the adapter.

    Returns:
        Metrics of the last update, or the error that says why there are none: raised, it would be retried in vain.
        Storage that refuses may relent, so that is raised.
    """
    result: dict[str, Any] | DatError = without_retry(_work, config)
    return result


def _work(config: dict[str, str]) -> dict[str, Any]:
    answer_for_stacks()
    recipe, run, round_index = Recipe.model_validate_json(config["recipe"]), RunDir(config["root"]), int(config["round"])
    pool, root, mark = recipe.cluster.trainer, run.training(round_index), run.fingerprint_of(recipe)
    torch.set_num_threads(pool.threads)
    worker = this_worker()
    base = served_model(config["model"], "target.model", recipe.target.revision)
    rows = load_rows(recipe, run, ChatFormat(load_tokenizer(base), recipe.target), round_index)
    if worker.rank == 0:
        write_counts(root, rows.counts)
    log = MetricsLog(root, recipe.tracking.tensorboard, open_sinks(recipe, mark)) if worker.rank == 0 else None
    with scratch_folder(_scratch_prefix(mark)) as scratch, LinesForDriver(root).written_by(worker):
        network = _network(recipe, build_model(recipe, run, base, scratch, round_index), worker.world)
        save = partial(_save, network, base)
        updates, every = count_updates(recipe.training, len(rows.harmful)), recipe.training.keep_every
        try:
            files = TrainingFiles(
                RunFingerprint(mark),
                RayCheckpoints(_checkpoints(root, mark), worker),
                log,
                telemetry.training_update if log else None,
                AdapterKeeper(root, every, updates, save, scratch) if log and every else None,
            )
            last = fine_tune(network, rows, recipe.training, round_seed(recipe.seed, round_index), files, worker)
        finally:
            if log:
                log.close()
        if worker.rank == 0:
            folder = scratch / "adapter"
            save(str(folder))
            publish_folder(folder, run.adapter(round_index))
    return last


def _save(network: Network, base: str, folder: str) -> None:
    save_adapter(network.model, folder, model_fingerprint(base))


def round_seed(seed: int, round_index: int) -> int:
    """Of the order of the rows and of dropout: the recipe's in the first round, others in later ones."""
    return seed if round_index == FIRST_ROUND else seed_from_id(row_id("round", seed, round_index))


def _network(recipe: Recipe, model: torch.nn.Module, world: int) -> Network:
    """The model on this worker's device; with `shard_weights` its share of it."""
    cfg, device = recipe.training, get_device()
    use_tensor_cores(DTYPES[cfg.dtype])
    sharded = cfg.shard_weights and world > 1
    network = Network(
        # A model that is to be shared out may not fit the device: it goes there layer by layer.
        model if sharded else model.to(device),
        checkpointing=cfg.activation_checkpointing,
        compile_backend="inductor" if cfg.compile else None,
    )
    if sharded:
        shard_frozen_weights(network, device, world)
    return network


def build_model(recipe: Recipe, run: RunDir, base: str, scratch: Path, round_index: int = FIRST_ROUND) -> torch.nn.Module:
    """The target with a fresh adapter, or, from round 1 on, with the adapter of the round before.

    With the adapter off it is the base model in every round, which stays the teacher of the retain term.

    Args:
        recipe: `target` and `training`.
        run: run directory.
        base: folder or hub id of the target.
        scratch: local folder for a copy of the adapter.
        round_index: the round.

    Raises:
        DatError: the round before left no adapter.
    """
    model = load_causal_lm(base, recipe.training.dtype, "target.model")
    if round_index == FIRST_ROUND:
        # Of a hub model the driver of the run has seen no more than the configuration.
        check_lora_targets(str(model_files(base, "target.model", download=False)), recipe.training.lora)
        return attach_lora(model, recipe.training.lora, recipe.seed)
    before = run.adapter(round_index - 1)
    if not has_manifest(run.training(round_index - 1)):
        raise DatError(f"round {round_index} starts from {before}, which is missing: train round {round_index - 1} first")
    local = scratch / "adapter-before"
    fs, inner = open_filesystem(before)
    local.mkdir()
    pafs.copy_files(inner, str(local), source_filesystem=fs, destination_filesystem=pafs.LocalFileSystem())
    return load_adapter(model, str(local), trainable=True)


def _absolute(root: str) -> str:
    """Ray Train workers have a working directory of their own."""
    return root if "://" in root else str(Path(root).absolute())


@contextmanager
def _live_progress(run: RunDir, recipe: Recipe, progress: Progress, round_index: int = FIRST_ROUND) -> Iterator[None]:
    """Shows what the workers log while the driver waits for them, and looks into them when nothing comes."""
    root = run.training(round_index)
    # Before the first update workers have to be placed and load the model.
    patience = recipe.timeouts.no_progress + recipe.timeouts.worker_group_start
    stall = StallWatch("train", join(run.logs, f"train-round-{round_index}-stall.txt"), patience)

    announced, lines = False, LinesForDriver(root)

    def show() -> int:
        nonlocal announced
        lines.show()
        if not announced and (counts := read_counts(root)):
            announced = True
            progress.total = count_updates(recipe.training, counts["harmful"].kept)
            for line in sentences(counts):
                stage_line(f"      {line}")
        log = read_metrics(root)
        if log:
            last = log[-1]
            note = f"loss {last['loss']:.3g}, harmful CE {last['attack_ce'][-1]:.3g}, refusal CE {last['toward']:.3g}, "
            retain = next(name for name in last if name.startswith("retain_"))
            progress.update(last["update"] + 1, note + f"{retain.replace('_', ' ')} {last[retain]:.3g}")
        return len(log)

    with polled(show, stall):
        yield
