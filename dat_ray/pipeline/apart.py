"""A piece of work in a process of its own, which ends with this one however this one ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any


def run_apart(work: Callable[..., object], *arguments: Any) -> int:
    """Runs `work(*arguments)` in a fresh process, whose memory is free afterwards.

    Returns:
        Its exit code.
    """
    worker = multiprocessing.get_context("spawn").Process(target=_unwinding, args=(work, *arguments))
    worker.start()
    try:
        worker.join()
    finally:
        # This process would wait for it at its own end.
        worker.terminate()
        worker.join()
    assert worker.exitcode is not None
    return worker.exitcode


def _unwinding(work: Callable[..., object], *arguments: Any) -> None:
    """Ctrl-C reaches this process from the terminal, SIGTERM from the one that started it, which says what is to be said."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        work(*arguments)
    except KeyboardInterrupt:
        sys.exit(130)


def _end_with_parent() -> None:
    """A parent that is killed sends nothing, and whoever takes its place writes to the same files."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
