"""Work in a process of its own: it ends with the process that started it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from dat_ray.data.processes import start_of
from dat_ray.pipeline.apart import run_apart

pytestmark = pytest.mark.fault


def _ends_with(code: int) -> None:
    sys.exit(code)


def _signals_its_parent(notes: Path) -> None:
    """Ctrl-C in the middle of the work, of the parent alone, as a scheduler's SIGTERM is."""
    (notes / "pid").write_text(str(os.getpid()))
    try:
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(600)
    finally:
        (notes / "unwound").touch()


def test_the_exit_code_comes_back() -> None:
    assert run_apart(_ends_with, 3) == 3


def test_a_parent_that_is_stopped_takes_the_work_along(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    with pytest.raises(KeyboardInterrupt):
        run_apart(_signals_its_parent, tmp_path)
    signal.signal(signal.SIGINT, before)
    assert (tmp_path / "unwound").exists()
    assert start_of(int((tmp_path / "pid").read_text())) is None
