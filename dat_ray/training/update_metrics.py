"""Training curves: one JSON line an update, TensorBoard beside it, and trackers where the recipe asks for them.

Keyed by the update: a replay after a crash rewrites its lines and adds none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pyarrow.fs as pafs

from dat_ray.data.scratch import scratch_folder
from dat_ray.data.shards import exists, join, open_filesystem, write_bytes
from dat_ray.data.stored import stored_lines, well_formed
from dat_ray.training.tracking import Sink

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
# Object stores can't append, so the file is written whole; a run of 10,000 updates has some 5 MB.
SECONDS_BETWEEN_WRITES = 5.0


def read_metrics(root: str) -> list[dict[str, Any]]:
    """The metrics of a training folder, in order of updates; empty where there are none yet."""
    path = join(root, METRICS)
    if not exists(path):
        return []
    return stored_lines(path, finite=False)


def read_rounds(roots: Sequence[str]) -> list[dict[str, Any]]:
    """The metrics of the trainings of several rounds, one after the other, their updates counted on."""
    found: list[dict[str, Any]] = []
    for root in roots:
        rows = read_metrics(root)
        if found:
            with well_formed(join(root, METRICS)):
                before = int(found[-1]["update"]) + 1
                rows = [row | {"update": before + int(row["update"])} for row in rows]
        found += rows
    return found


class MetricsLog:
    """Writes `metrics.jsonl` and TensorBoard events below a training folder.

    Args:
        root: local path or URI of the folder.
        tensorboard: also write TensorBoard events.
        sinks: trackers that get each update's numbers too.
        key: of a row's number.
        first: number of the first row.
    """

    def __init__(
        self, root: str, tensorboard: bool = False, sinks: Sequence[Sink] = (), key: str = "update", first: int = 0
    ) -> None:
        self.root, self.tensorboard, self.sinks, self.key, self.first = root, tensorboard, sinks, key, first
        self._rows: list[dict[str, Any]] = []
        self._events: Any = None
        self._events_folder = ""
        self._scratch = ExitStack()
        self._written = float("-inf")

    def start(self, update: int) -> None:
        """Goes on after that many updates: what was logged of later ones will be logged again.

        Raises:
            ShardError: the file that is there does not hold rows with their numbers.
        """
        with well_formed(join(self.root, METRICS)):
            self._rows = [row for row in read_metrics(self.root) if row[self.key] < update + self.first]
        if not self.tensorboard:
            return
        from tensorboardX import SummaryWriter

        place = join(self.root, TENSORBOARD)
        remote = not isinstance(open_filesystem(place)[0], pafs.LocalFileSystem)
        # Event files are appended to: they grow on local disk, and are copied where the run lies elsewhere.
        self._events_folder = open_filesystem(place)[1]
        if remote:
            self._events_folder = str(self._scratch.enter_context(scratch_folder("dat-events-")))
        self._events = SummaryWriter(self._events_folder, purge_step=update if update else None)

    def append(self, metrics: dict[str, Any]) -> None:
        """Adds one update's metrics; on disk within seconds."""
        assert not self._rows or metrics[self.key] > self._rows[-1][self.key], "updates are logged in order"
        self._rows.append(metrics)
        if self._events:
            for name, value in scalars(metrics).items():
                self._events.add_scalar(name, value, metrics[self.key])
        for sink in self.sinks:
            sink.log(scalars(metrics), metrics[self.key])
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.flush()

    def flush(self) -> None:
        """Writes everything logged so far."""
        text = "".join(json.dumps(row) + "\n" for row in self._rows)
        write_bytes(join(self.root, METRICS), text.encode())
        self._written = time.monotonic()
        if self._events:
            self._events.flush()
            fs, place = open_filesystem(join(self.root, TENSORBOARD))
            if not isinstance(fs, pafs.LocalFileSystem):
                fs.create_dir(place, recursive=True)
                pafs.copy_files(self._events_folder, place, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=fs)

    def close(self) -> None:
        """Ends the event file; what was not flushed is written."""
        if self._rows:
            self.flush()
        if self._events:
            self._events.close()
        self._scratch.close()
        for sink in self.sinks:
            sink.close()


def scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """The numbers of one update's metrics under the names that TensorBoard shows."""
    found = {f"training/{key}": value for key, value in metrics.items() if isinstance(value, float)}
    for name, value in metrics.get("cost", {}).items():
        if value is not None:
            found[f"cost/{name}"] = float(value)
    found["attack/harmful_ce_before"] = metrics["attack_ce"][0]
    found["attack/harmful_ce_after"] = metrics["attack_ce"][-1]
    if metrics["attack_norm"]:
        found["attack/relative_norm"] = metrics["attack_norm"][-1]
    return found
