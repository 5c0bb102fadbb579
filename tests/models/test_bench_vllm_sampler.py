"""`dat bench vllm-sampler` on the shipped sampler, as a process of its own: it starts Ray and two engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from dat_ray.bench.verb import KEYS
from dat_ray.cli import main


@pytest.mark.drill
def test_the_three_forms_write_the_same_rows() -> None:
    command = [sys.executable, "-m", "dat_ray.cli", "bench", "vllm-sampler", "--json", "--rows", "4", "--repeats", "1"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    # Without chance, and in a type in which two engines seldom round a choice apart.
    law = [f"--set=sampler.{setting}" for setting in ("steps=3", "dtype=float32", "temperature=0.0", "guidance=0.0")]
    done = subprocess.run([*command, *law], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert set(KEYS) <= set(found)
    assert found["rows_equal_to_bare"] == found["rows_equal_to_torch"] == 4
    assert {key: len(values) for key, values in found["seconds"].items()} == {"actor": 1, "bare": 1, "torch": 1}
    assert found["ratio_to_bare"] == pytest.approx(found["seconds"]["bare"][0] / found["seconds"]["actor"][0])


@pytest.mark.parametrize("option", ["--rows", "--threads", "--repeats"])
def test_bad_options_are_one_line(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert main(["bench", "vllm-sampler", option, "0"]) == 2
    message = capsys.readouterr().err.strip()
    assert option in message
    assert "\n" not in message
