"""Work in a process of its own: it ends with the process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
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


PARENT = """
import sys
from pathlib import Path
from dat_ray.pipeline.apart import run_apart
from tests.unit.pipeline.test_apart import goes_on
if __name__ == "__main__":
    run_apart(goes_on, Path(sys.argv[1]))
"""


def goes_on(notes: Path) -> None:
    partial = notes / "partial"
    partial.write_text(str(os.getpid()))
    partial.rename(notes / "pid")
    time.sleep(600)


def test_a_parent_that_is_killed_takes_the_work_along(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = Path(__file__).parents[3]
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    while not (tmp_path / "pid").exists():
        assert parent.poll() is None
        time.sleep(0.05)
    work = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    try:
        while start_of(work) is not None:  # until the time-out of tests
            time.sleep(0.05)
    finally:
        with suppress(ProcessLookupError):
            os.kill(work, signal.SIGKILL)
