"""Standard output is the program's own: what a library's thread prints meanwhile goes to standard error."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading

import pytest
import ray._private.worker as ray_worker

from dat_ray import cli
from dat_ray.config.loading import list_recipes
from dat_ray.own_stdout import own_stdout


def from_a_thread(text: str) -> None:
    thread = threading.Thread(target=print, args=(text,))
    thread.start()
    thread.join()


def test_a_line_that_another_thread_breaks_into_stays_whole(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with own_stdout():
        print("pas", end="")
        from_a_thread("(raylet) a worker died")
        print("sed")
        assert (sys.stdout.encoding, sys.stdout.errors) == (before.encoding, before.errors)
        assert sys.stdout.isatty() is before.isatty()
    assert sys.stdout is before
    from_a_thread("afterwards")
    printed = capsys.readouterr()
    assert printed.out == "passed\nafterwards\n"
    assert printed.err == "(raylet) a worker died\n"


def test_the_json_of_a_verb_is_json_whatever_ray_tells_meanwhile(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"lines": ["A worker died"], "pid": "raylet", "is_err": False}

    def listing(*kind: str) -> list[str]:
        # As the thread in which Ray listens for errors prints them.
        thread = threading.Thread(target=ray_worker.print_to_stdstream, args=(told,), kwargs={"ignore_prefix": False})
        thread.start()
        thread.join()
        return list_recipes(*kind)

    monkeypatch.setattr("dat_ray.config.loading.list_recipes", listing)
    assert cli.main(["recipes", "--json"]) == 0
    printed = capsys.readouterr()
    assert "demo" in json.dumps(json.loads(printed.out))
    assert "A worker died" in printed.err


def test_a_pipe_that_is_closed_is_no_error() -> None:
    command = f"{sys.executable} -m dat_ray.cli recipes show demo | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.strip() == "0"
    assert "Traceback" not in done.stderr


def test_a_library_that_kept_it_sees_that_it_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that color lines look at it once more when the process ends, and ask first whether it is closed."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with own_stdout():
        kept = sys.stdout
        assert not kept.closed
    stream.close()
    assert kept.closed
