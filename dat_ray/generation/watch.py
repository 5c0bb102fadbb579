"""Follows a running plan from a thread of the driver: rows that are safely written, and what is going on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from dat_ray.data.shards import join, open_filesystem
from dat_ray.diagnosis import StallWatch
from dat_ray.errors import HelperLost
from dat_ray.generation.finish import CHECKPOINT, committed_checkpoints
from dat_ray.progress import Progress

LOCAL_INTERVAL, REMOTE_INTERVAL = 1.0, 5.0


class RowCounter:
    """Counts the rows of finished shards, reading each shard's checkpoint once."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._rows: dict[str, int] = {}

    def count(self) -> int:
        """Rows that a crash of any process would not cost."""
        names = committed_checkpoints(self.root)
        for name in names:
            if name not in self._rows:
                fs, inner = open_filesystem(join(self.root, CHECKPOINT, name))
                with fs.open_input_file(inner) as stream:
                    self._rows[name] = pq.read_metadata(stream).num_rows
        # A resume may have joined some that were counted before.
        return sum(self._rows[name] for name in names)


class Watch:
    """Keeps a `Progress` up to date while its `with` block runs.

    Args:
        root: the round's folder.
        progress: entered already.
        note: asks what is going on.
        stall: notices when no row comes.
    """

    def __init__(self, root: str, progress: Progress, note: Callable[[], str], stall: StallWatch) -> None:
        self._counter, self._progress, self._note, self._stall = RowCounter(root), progress, note, stall
        self._interval = REMOTE_INTERVAL if "://" in root else LOCAL_INTERVAL
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="watch-rows", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        # Not for ever: the thread may wait for a cluster that is gone.
        self._thread.join(timeout=10)

    def _follow(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                done, note = self._counter.count(), self._note()
                self._stall.tick(done)
            except (OSError, pa.ArrowInvalid, ray.exceptions.RayError, HelperLost):
                # A display must not end a run: storage that stutters is read again at the next turn.
                continue
            total = self._progress.total or done
            self._progress.update(min(done, total), note)
