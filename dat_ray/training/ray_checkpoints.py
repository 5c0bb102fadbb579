"""Checkpoints of a training in Ray Train workers: the first one writes, and all go on from the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ray
from ray.train.collective import broadcast_from_rank_zero

from dat_ray.data.checkpoints import load_newest, read_at
from dat_ray.data.shards import join
from dat_ray.errors import DamagedCheckpoint, DatError, StorageError
from dat_ray.training.checkpoint import CheckpointWriter, FolderCheckpoints
from dat_ray.training.trainer import WorkerInfo


class RayCheckpoints(FolderCheckpoints):
    """Checkpoints of Ray Train's workers, in a folder that all of them see: the first one writes, and chooses what is read.

    Ray Train itself keeps none: its list of them is written in place, and a kill at that instant ends every later resume.

    Args:
        root: local path or URI.
        worker: this one.
        unit: what is counted.
    """

    def __init__(self, root: str, worker: WorkerInfo, unit: str = "update") -> None:
        super().__init__(root, unit)
        self.worker = worker
        self._leaving: set[str] = set()

    def load(self, read: Callable[[Path], int]) -> int:
        if self.worker.world == 1:
            return super().load(read)
        if self.worker.rank == 0:
            try:
                done, name = load_newest(self.root, self.kept(), read, self.unit)
            except DatError as error:
                broadcast_from_rank_zero((None, str(error)[:500]))
                raise
            broadcast_from_rank_zero((name, ""))
            return done
        name, refusal = broadcast_from_rank_zero(None)
        if refusal:
            raise DatError(refusal)
        try:
            return read_at(self.root, name, read) if name else 0
        except DamagedCheckpoint as error:
            # To the first worker it is whole: network file systems may show an older state for a while.
            raise StorageError(f"{join(self.root, name)} is another one for worker {self.worker.rank} ({error})") from error

    def urgent(self) -> bool:
        """Once for every worker's node that is about to be taken away: what it has done since the last checkpoint would be
        done again."""
        found = ray.train.get_preemption_info()
        leaving = set() if found is None else set(found.preempted_node_ids)
        news = leaving - self._leaving
        self._leaving |= leaving
        return bool(news)

    def save(self, updates_done: int, write: CheckpointWriter) -> None:
        if self.worker.rank == 0:
            super().save(updates_done, write)
        # No worker goes on before it is kept.
        ray.train.report({f"{self.unit}s_done": updates_done})
