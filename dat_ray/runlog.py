"""The run's structured log: what a person saw, as JSON lines that a program can read.

One file a process, `logs/events-TIME-PID.jsonl`: lines of `stage_line`, the state of every `Progress` every few
seconds, and records of Python's logging from this package. Object stores cannot append, so the file is written whole.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from types import TracebackType
from typing import Any

from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import join, write_bytes
from dat_ray.errors import DatError
from dat_ray.progress import listeners
from dat_ray.secrets import redact

SECONDS_BETWEEN_WRITES = 10.0
# A run of a month writes some 500,000 progress lines: the oldest go first.
MAX_LINES = 20_000


class RunLog:
    """Keeps the log while its `with` block runs.

    Args:
        run: whose `logs/` it goes to.
    """

    def __init__(self, run: RunDir) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self.path = join(run.logs, f"events-{stamp}-{os.getpid()}.jsonl")
        self._lines: list[str] = []
        self._fresh, self._lock, self._stop = False, threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._write_often, name="run-log", daemon=True)
        self._handler = _Handler(self.add)

    def __enter__(self) -> RunLog:
        listeners.append(self.add)
        logging.getLogger("dat_ray").addHandler(self._handler)
        self.add({"event": "start", "pid": os.getpid(), "job": os.environ.get("RAY_JOB_SUBMISSION_ID")})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self.add({"event": "failure", "kind": type(error).__name__, "text": str(error)})
        self.add({"event": "end"})
        listeners.remove(self.add)
        logging.getLogger("dat_ray").removeHandler(self._handler)
        self._stop.set()
        self._thread.join()
        self._write()

    def add(self, event: dict[str, Any]) -> None:
        """One line; values of secret environment variables are blanked."""
        # Half a character of a server's answer has no place in a file.
        text = json.dumps({"time": round(time.time(), 3), **event}, ensure_ascii=False)
        line = redact(text).encode(errors="backslashreplace").decode()
        with self._lock:
            self._lines.append(line)
            del self._lines[:-MAX_LINES]
            self._fresh = True

    def _write_often(self) -> None:
        while not self._stop.wait(SECONDS_BETWEEN_WRITES):
            self._write()

    def _write(self) -> None:
        with self._lock:
            if not self._fresh:
                return
            text, self._fresh = "\n".join(self._lines) + "\n", False
        try:
            write_bytes(self.path, text.encode())
        except DatError:
            # A full disk is the stage's to report; the log must not hide that error behind its own.
            self._fresh = True


class _Handler(logging.Handler):
    def __init__(self, add: Any) -> None:
        super().__init__(level=logging.INFO)
        self._add = add

    def emit(self, record: logging.LogRecord) -> None:
        self._add({"event": "log", "level": record.levelname, "logger": record.name, "text": record.getMessage()})
