"""What is taken from the error stream, and what is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from dat_ray.generation.ray_notice import NOTICE, screen_without

SAID = (
    "core_worker.cc:2465: Actor with class name: 'MapWorker(MapBatches(SamplerActor))' and ID: '3467' has constructor arguments "
    "in the object store and max_restarts > 0. If the arguments go out of scope or are lost, the actor restart will fail."
)
PLAIN = f"[2026-11-27 18:21:26,278 E 1422 1422] {SAID}\n"
AS_JSON = json.dumps({"asctime": "2026-11-27 18:21:26,278", "levelname": "E", "message": SAID}) + "\n"
OTHER = "[2026-11-27 18:21:27,001 E 1422 1422] core_worker.cc:609: Attempting to recover 1 lost objects\n"


@pytest.mark.parametrize("notice", [PLAIN, AS_JSON])
def test_one_line_is_held_back_and_all_else_is_shown_in_order(capfd: pytest.CaptureFixture[str], notice: str) -> None:
    with screen_without(NOTICE):
        for text in (OTHER, "\rgenerate [####]  3/8 rows", notice, "\rgenerate [####]  4/8 rows", "\nan end without a line"):
            os.write(2, text.encode())
        assert capfd.readouterr().err == ""
    sys.stderr.write("after\n")
    sys.stderr.flush()
    assert capfd.readouterr().err == (
        f"{OTHER}\rgenerate [####]  3/8 rows\rgenerate [####]  4/8 rows\nan end without a lineafter\n"
    )


def test_what_was_written_before_an_error_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), screen_without(NOTICE):
        os.write(2, OTHER.encode())
        raise KeyError("stop")
    os.write(2, PLAIN.encode())
    assert capfd.readouterr().err == OTHER + PLAIN


def test_a_crash_afterwards_is_seen() -> None:
    code = (
        "import faulthandler, os, signal\n"
        "from dat_ray.generation.ray_notice import NOTICE, screen_without\n"
        "faulthandler.enable()\n"
        "with screen_without(NOTICE):\n"
        f"    os.write(2, {PLAIN!r}.encode())\n"
        "os.kill(os.getpid(), signal.SIGABRT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode < 0
    assert done.stderr.startswith("Fatal Python error: Aborted"), done.stderr
