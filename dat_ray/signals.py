"""Signals that stop a verb: all of them unwind it in the same way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn


@contextmanager
def unwinding_signals() -> Iterator[list[str]]:
    """Inside a `with` block Ctrl-C, SIGTERM and a closed terminal unwind alike, so that actors and engines are shut down.

    A signal that the caller has this process ignore, as nohup does, stays ignored. The caller's handlers are put back.

    Yields:
        Names of the signals that came.
    """
    came: list[str] = []

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        came.append(signal.Signals(number).name)
        raise KeyboardInterrupt(came[-1])

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield came
    finally:
        for number, handler in before.items():
            # None is a handler that was not set from Python, and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
