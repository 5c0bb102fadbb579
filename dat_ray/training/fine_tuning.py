"""Fine-tuning of a target: its rows, how many updates they make, and the training itself. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dat_ray.config.training import TrainingConfig
from dat_ray.errors import DatError
from dat_ray.models.chat import Encoded
from dat_ray.training.batches import HarmfulRow, is_rewrite, rewrites_before, rows_of_update, share_of_worker
from dat_ray.training.counts import TableCount
from dat_ray.training.network import Network
from dat_ray.training.passes import count_updates
from dat_ray.training.step import FineTuning, UpdateRows, make_trainer
from dat_ray.training.trainer import SINGLE_WORKER, TrainingFiles, WorkerInfo


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
        pool, stream, turn = self.harmful, "harmful", update
        if self.rewrites:
            # Each table goes on where its own last update ended: by the number of all updates it would pass rows over.
            before = rewrites_before(cfg.rewrite_share, seed, update)
            turn = update - before
            if is_rewrite(cfg.rewrite_share, seed, update):
                pool, stream, turn = self.rewrites, "rewrites", before
        harmful = rows_of_update(len(pool), cfg.harmful_rows, seed, stream, turn)
        retain = rows_of_update(len(self.retain), cfg.retain_rows, seed, "retain", update) if cfg.retain_rows else []
        return UpdateRows(
            harmful=[pool[i] for i in share_of_worker(harmful, rank, world)],
            retain=[self.retain[i] for i in share_of_worker(retain, rank, world)],
            harmful_count=len(harmful),
            retain_tokens=sum(high - low for low, high in (self.retain[i].response_span for i in retain)),
        )


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


def fine_tune(
    network: Network,
    rows: TrainingRows,
    cfg: TrainingConfig,
    seed: int,
    files: TrainingFiles,
    worker: WorkerInfo = SINGLE_WORKER,
) -> dict[str, Any]:
    """Trains the network's adapter in place, from the newest checkpoint that is not damaged, where there is one.

    Args:
        network: model with a fresh adapter.
        rows: all rows, the same on every worker.
        cfg: the recipe's `training`.
        seed: the recipe's.
        files: checkpoints and log.
        worker: rank, count and sum over workers.

    Returns:
        Metrics of the last update; empty where nothing was left to do.

    Raises:
        Diverged: a loss or gradient is not finite. The last checkpoint stays.
        DatError: not enough rows, or a checkpoint of another run.
    """
    check_rows(cfg, len(rows.harmful), len(rows.retain), worker.world)
    trainer = make_trainer(network, cfg, count_updates(cfg, len(rows.harmful)), seed, worker)
    start = trainer.restore(files)
    objective = FineTuning(network, cfg, lambda update: rows.share(cfg, seed, update, worker.rank, worker.world))
    return trainer.run(objective, files, start)
