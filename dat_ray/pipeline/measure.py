"""What a stage costs: wall clock, and the peak memory and processor time of this process and those it started."""

from __future__ import annotations

import json
import threading
import time
from types import TracebackType
from typing import Any

import psutil

from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import exists, join, read_bytes, write_bytes

SAMPLE_SECONDS = 1.0


def tree_bytes(root: psutil.Process) -> int:
    """Memory that a process and its descendants hold for themselves, in bytes.

    Pages that processes share (libraries, the object store) would count once a process: they are left out.
    """
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            memory = process.memory_info()
        except psutil.Error:
            continue  # it ended between the listing and the look
        total += memory.rss - getattr(memory, "shared", 0)
    return total


def tree_cpu_seconds(root: psutil.Process) -> dict[tuple[int, float], float]:
    """Processor seconds, user and system, of a process and its descendants, by process id and start."""
    found = {}
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
            found[process.pid, process.create_time()] = times.user + times.system
        except psutil.Error:
            continue  # it ended between the listing and the look
    return found


class StageCost:
    """Measures the block it wraps; `seconds`, `peak_bytes` and `cpu_seconds` hold the result afterwards.

    A process that ends keeps the processor time of its last sample: at most `SAMPLE_SECONDS` of each are missed.
    """

    def __init__(self) -> None:
        self.seconds, self.peak_bytes = 0.0, 0
        self._before: dict[tuple[int, float], float] = {}
        self._seen: dict[tuple[int, float], float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stage-memory", daemon=True)

    def __enter__(self) -> StageCost:
        self._before = tree_cpu_seconds(psutil.Process())
        self.started = time.time()
        self._begin = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.seconds = time.monotonic() - self._begin
        self._stop.set()
        self._thread.join()
        self._seen |= tree_cpu_seconds(psutil.Process())

    @property
    def cpu_seconds(self) -> float:
        """Processor seconds of the block, over all processes."""
        return sum(seconds - self._before.get(process, 0.0) for process, seconds in self._seen.items())

    def _watch(self) -> None:
        root = psutil.Process()
        while True:
            self.peak_bytes = max(self.peak_bytes, tree_bytes(root))
            self._seen |= tree_cpu_seconds(root)
            if self._stop.wait(SAMPLE_SECONDS):
                return


def record_stage(run: RunDir, stage: str, cost: StageCost, **facts: Any) -> None:
    """Appends one line to `logs/stages.jsonl`."""
    path = join(run.logs, "stages.jsonl")
    before = read_bytes(path) if exists(path) else b""
    line = {
        "stage": stage,
        "started": cost.started,
        "seconds": round(cost.seconds, 3),
        "peak_bytes": cost.peak_bytes,
        "cpu_seconds": round(cost.cpu_seconds, 3),
        **facts,
    }
    write_bytes(path, before + json.dumps(line).encode() + b"\n")
