"""What a person sees while a run goes on: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from dat_ray import telemetry
from dat_ray.printable import printable

SECONDS_BETWEEN_LINES = 5.0
BAR_WIDTH = 24

# Called with what is shown, as plain values: see `dat_ray.runlog`.
listeners: list[Callable[[dict[str, Any]], None]] = []


def _tell(event: dict[str, Any]) -> None:
    for listener in list(listeners):
        listener(event)


def clock(seconds: float) -> str:
    """`75` as `1:15`, `3700` as `1:01:40`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, seconds_left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds_left:02d}" if hours else f"{minutes}:{seconds_left:02d}"


def stage_line(text: str, stream: TextIO | None = None) -> None:
    """One line about a stage, kept in the scroll-back."""
    # Values of others stand in many lines: none of them moves the cursor.
    text = printable(text)
    print(text, file=stream or sys.stderr, flush=True)
    _tell({"event": "line", "text": text.strip()})


class Progress:
    """Counts one stage's work and shows it.

    A heartbeat thread keeps the display alive while nothing finishes, so that a wait is visible.

    Args:
        stage: name shown in front.
        total: units of work, or None where nobody knows.
        unit: what is counted, in the plural.
        stream: defaults to standard error.
    """

    def __init__(self, stage: str, total: int | None, unit: str = "rows", stream: TextIO | None = None) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self.stream = stream or sys.stderr
        self.done, self.note = 0, ""
        self._first: tuple[float, int] | None = None
        self._terminal = self.stream.isatty()
        self._interval = 0.25 if self._terminal else SECONDS_BETWEEN_LINES
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"progress-{stage}", daemon=True)

    def __enter__(self) -> Progress:
        self.started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        mark = "failed after" if kind else "done in"
        self._clear()
        self._report("failed" if kind else "done")
        stage_line(f"{self.stage}: {self._counts()} {mark} {clock(time.monotonic() - self.started)}", self.stream)

    def update(self, done: int, note: str = "") -> None:
        """Says how much is done in all (not how much more), and optionally what is going on."""
        if self._first is None and done > 0:
            # The rate leaves out start-up and what an earlier run had finished.
            self._first = (time.monotonic(), done)
        self.done, self.note = done, note or self.note

    def line(self) -> str:
        """The text of one display."""
        elapsed = time.monotonic() - self.started
        parts = [self._counts()]
        rate = self._rate()
        if rate:
            parts.append(f"{rate:.2g} {self.unit}/s" if rate < 10 else f"{rate:.0f} {self.unit}/s")
            if self.total is not None and self.done < self.total:
                parts.append(f"{clock((self.total - self.done) / rate)} left")
        parts.append(f"{clock(elapsed)} gone")
        if self.note:
            parts.append(self.note)
        return printable(f"{self.stage}: {', '.join(parts)}")

    def _counts(self) -> str:
        if self.total is None:
            return f"{self.done} {self.unit}"
        share = f" ({100 * self.done // self.total}%)" if self.total else ""
        return f"{self.done}/{self.total} {self.unit}{share}"

    def _rate(self) -> float | None:
        if self._first is None or self.done <= self._first[1]:
            return None
        return (self.done - self._first[1]) / max(time.monotonic() - self._first[0], 1e-9)

    def _report(self, state: str) -> None:
        telemetry.gauge("dat_stage_done", self.done, stage=self.stage, unit=self.unit)
        if self.total is not None:
            telemetry.gauge("dat_stage_waiting", self.total - self.done, stage=self.stage, unit=self.unit)
        _tell(
            {
                "event": "progress",
                "state": state,
                "stage": self.stage,
                "done": self.done,
                "total": self.total,
                "unit": self.unit,
                "per_second": self._rate(),
                "seconds": round(time.monotonic() - self.started, 1),
                "note": self.note,
            }
        )

    def _beat(self) -> None:
        reported = 0.0
        while not self._stop.wait(self._interval):
            if time.monotonic() - reported >= SECONDS_BETWEEN_LINES:
                self._report("running")
                reported = time.monotonic()
            if not self._terminal:
                print(self.line(), file=self.stream, flush=True)
                continue
            filled = BAR_WIDTH * self.done // self.total if self.total else 0
            bar = "█" * filled + "░" * (BAR_WIDTH - filled)
            print(f"\r\x1b[2K{bar} {self.line()}"[:200], end="", file=self.stream, flush=True)

    def _clear(self) -> None:
        if self._terminal:
            print("\r\x1b[2K", end="", file=self.stream)


class ProgressCounter:
    """Rows done, counted from several threads.

    Args:
        progress: shows them.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress, self._done, self._lock = progress, 0, threading.Lock()

    def add(self, rows: int, note: str) -> None:
        """Counts rows that are on disk now."""
        with self._lock:
            self._done += rows
            self._progress.update(self._done, note)
