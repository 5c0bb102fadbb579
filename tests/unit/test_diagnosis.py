"""Asking processes for their stacks: a signal that ends whoever does not expect it."""

from __future__ import annotations

import os
import subprocess
import sys

from dat_ray.diagnosis import _node_stacks, _stacks_of

ANSWERS = (
    "import sys, time; from dat_ray.diagnosis import answer_for_stacks; answer_for_stacks(); print(); sys.stdout.flush();"
    "time.sleep(300)"
)


def test_a_process_with_the_id_of_one_that_answered_is_left_alone() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    path = _stacks_of(process.pid)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.touch()
        os.utime(path, (1e9, 1e9))
        assert _node_stacks([process.pid]) == {}
        assert process.poll() is None, "the signal would have ended it"
    finally:
        path.unlink(missing_ok=True)
        process.kill()
        process.wait()


def test_a_process_that_answers_is_asked() -> None:
    process = subprocess.Popen([sys.executable, "-c", ANSWERS], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        (stacks,) = _node_stacks([process.pid]).values()
        assert "most recent call first" in stacks
    finally:
        process.kill()
        process.wait()
        _stacks_of(process.pid).unlink(missing_ok=True)
