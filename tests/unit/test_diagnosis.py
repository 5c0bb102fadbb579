"""Asking processes for their stacks: a signal that ends whoever does not expect it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dat_ray import diagnosis
from dat_ray.diagnosis import _node_stacks, _stacks_of, death_in_a_line

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


def test_files_of_processes_that_have_ended_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis.tempfile, "gettempdir", lambda: str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    path = _stacks_of(process.pid)
    path.parent.mkdir()
    path.touch()
    diagnosis.remove_stacks()
    assert path.exists()
    process.kill()
    process.wait()
    diagnosis.remove_stacks()
    assert list(tmp_path.iterdir()) == []
    diagnosis.remove_stacks()


def test_a_death_in_a_line_begins_with_its_reason() -> None:
    said = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: EngineHost\n\tactor_id: 0123\n"
        "The actor died because its node has died. Node Id: 4567\n\tthe node was terminated unexpectedly: preempted"
    )
    line = death_in_a_line(RuntimeError(said))
    assert line.startswith("RuntimeError: The actor died because its node has died. Node Id: 4567 the node was terminated")
    assert death_in_a_line(RuntimeError("out of\nreach")) == "RuntimeError: out of reach"
    assert len(death_in_a_line(RuntimeError("no " * 400))) == 300
