"""The training loop: restore, update, log, checkpoint. Runs in process or inside a Ray Train worker alike.

Exactly resumable: stopped anywhere and started again, it ends with the same adapter, bit for bit on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dat_ray import telemetry
from dat_ray.config.training import TrainingConfig
from dat_ray.errors import DatError
from dat_ray.models.chat import Encoded
from dat_ray.training.attack import mean_embedding_norm
from dat_ray.training.batches import HarmfulRow, is_rewrite, rows_of_update, share_of_worker
from dat_ray.training.checkpoint import Checkpoints, load_checkpoint, save_checkpoint
from dat_ray.training.counts import TableCount
from dat_ray.training.metrics import MetricsLog
from dat_ray.training.network import Network
from dat_ray.training.step import Reduce, UpdateRows, alone, make_optimizer, take_update


@dataclass(frozen=True)
class TrainingRows:
    """Everything there is to train on, the same on every worker.

    Attributes:
        harmful: prompts of the training set.
        retain: harmless rows.
        rewrites: of a mixture: prompts that take the place of `harmful` in a share of the updates.
        counts: what became of each table's rows, by the names above.
    """

    harmful: Sequence[HarmfulRow]
    retain: Sequence[Encoded]
    rewrites: Sequence[HarmfulRow] = ()
    counts: Mapping[str, TableCount] = field(default_factory=dict)

    def share(self, cfg: TrainingConfig, seed: int, update: int, rank: int, world: int) -> UpdateRows:
        """What one worker sees of one update."""
        pool, stream = self.harmful, "harmful"
        if self.rewrites and is_rewrite(cfg.rewrite_share, seed, update):
            pool, stream = self.rewrites, "rewrites"
        harmful = rows_of_update(len(pool), cfg.harmful_rows, seed, stream, update)
        retain = rows_of_update(len(self.retain), cfg.retain_rows, seed, "retain", update) if cfg.retain_rows else []
        return UpdateRows(
            harmful=[pool[i] for i in share_of_worker(harmful, rank, world)],
            retain=[self.retain[i] for i in share_of_worker(retain, rank, world)],
            harmful_count=len(harmful),
            retain_tokens=sum(high - low for low, high in (self.retain[i].response_span for i in retain)),
        )


@dataclass(frozen=True)
class Worker:
    """This process among its peers."""

    rank: int = 0
    world: int = 1
    reduce: Reduce = alone


def check_rows(cfg: TrainingConfig, harmful: int, retain: int, world: int) -> None:
    """Fails before a model is loaded where an update cannot be filled.

    Raises:
        DatError: too few rows for an update, or fewer rows in an update than workers.
    """
    if harmful < cfg.harmful_rows:
        raise DatError(
            f"the training set has {harmful} rows, one update needs {cfg.harmful_rows}: "
            "generate or select more candidates, or lower training.harmful_rows"
        )
    if retain < cfg.retain_rows:
        raise DatError(
            f"there are {retain} retain rows, one update needs {cfg.retain_rows}: "
            "raise training.retain.limit, add rows to training.retain.path, or lower training.retain_rows"
        )
    if cfg.harmful_rows < world:
        raise DatError(
            f"{world} training workers share {cfg.harmful_rows} harmful rows an update: "
            "lower min_actors and max_actors of cluster.trainer, or raise training.harmful_rows"
        )
    if cfg.shard_weights:
        for name, rows in (("harmful_rows", cfg.harmful_rows), ("retain_rows", cfg.retain_rows)):
            if rows % world:
                raise DatError(
                    f"training.shard_weights lets {world} workers run in step, and training.{name} = {rows} does not "
                    f"divide among them: make it a multiple of {world}"
                )


def count_updates(cfg: TrainingConfig, harmful: int) -> int:
    """Updates of the whole training: as told, or `epochs` over the harmful rows."""
    return cfg.updates or math.ceil(cfg.epochs * harmful / cfg.harmful_rows)


def run_loop(
    network: Network,
    rows: TrainingRows,
    cfg: TrainingConfig,
    *,
    seed: int,
    run: str,
    checkpoints: Checkpoints,
    log: MetricsLog | None,
    worker: Worker = Worker(),
) -> dict[str, Any]:
    """Trains the network's adapter in place, from the newest checkpoint that is not damaged, where there is one.

    Args:
        network: model with a fresh adapter.
        rows: all rows, the same on every worker.
        cfg: the recipe's `training`.
        seed: the recipe's.
        run: fingerprint of the run, kept in each checkpoint.
        checkpoints: where they are kept.
        log: where metrics go; None on all workers but the first.
        worker: rank, count and sum over workers.

    Returns:
        Metrics of the last update; empty where nothing was left to do.

    Raises:
        Diverged: a loss or gradient is not finite. The last checkpoint stays.
        DatError: not enough rows, or a checkpoint of another run.
    """
    check_rows(cfg, len(rows.harmful), len(rows.retain), worker.world)
    updates = count_updates(cfg, len(rows.harmful))
    optimizer = make_optimizer(network, cfg)
    start = checkpoints.load(lambda folder: load_checkpoint(folder, network, optimizer, run))
    unit_norm = mean_embedding_norm(network.embedding)
    if log:
        log.start(start)
    metrics: dict[str, Any] = {}

    def write(folder: Path) -> None:
        save_checkpoint(folder, network, optimizer, update + 1, run)

    for update in range(start, updates):
        metrics = take_update(
            network,
            optimizer,
            rows.share(cfg, seed, update, worker.rank, worker.world),
            cfg,
            update=update,
            updates=updates,
            unit_norm=unit_norm,
            seed=seed,
            rank=worker.rank,
            reduce=worker.reduce,
        )
        if log:
            log.append(metrics)
            telemetry.training_update(metrics)
        due = (update + 1) % cfg.checkpoint_every == 0 or update + 1 == updates
        # Asked after every update: the answer is an agreement of all workers.
        if checkpoints.urgent() or due:
            if log:
                log.flush()
            checkpoints.save(update + 1, write)
    return metrics
