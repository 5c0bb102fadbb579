from __future__ import annotations

import io
import time
from collections.abc import Callable

import pytest

import dat_ray.progress as progress
from dat_ray.progress import Progress, clock


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def until(shown: Callable[[], bool]) -> None:
    """However long the thread that shows it takes to get a turn."""
    deadline = time.monotonic() + 600
    while not shown():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_clock_reads_like_a_clock() -> None:
    assert [clock(0), clock(75), clock(3700)] == ["0:00", "1:15", "1:01:40"]


def test_lines_elsewhere_tell_stage_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.05)
    stream = io.StringIO()
    with Progress("sample", 100, stream=stream) as shown:
        shown.update(10, "1 actor")
        until(lambda: "10/100" in stream.getvalue())
        shown.update(30)
        until(lambda: "30/100" in stream.getvalue())
    lines = stream.getvalue().splitlines()
    assert any("sample: 30/100 rows (30%)" in line and "rows/s" in line and "left" in line for line in lines)
    assert lines[-1].startswith("sample: 30/100 rows (30%) done in")
    assert "\x1b" not in stream.getvalue()


def test_the_rate_leaves_out_what_an_earlier_run_finished() -> None:
    shown = Progress("sample", 100, stream=io.StringIO())
    shown.started = time.monotonic()
    shown.update(90)
    assert "rows/s" not in shown.line()


def test_a_terminal_gets_a_bar_and_a_failure_is_called_one() -> None:
    stream = _Terminal()
    with pytest.raises(RuntimeError), Progress("train", 4, unit="updates", stream=stream) as shown:
        shown.update(2)
        until(lambda: "█" in stream.getvalue())
        raise RuntimeError
    assert "█" * 12 + "░" * 12 in stream.getvalue()
    assert "train: 2/4 updates (50%) failed after" in stream.getvalue()
