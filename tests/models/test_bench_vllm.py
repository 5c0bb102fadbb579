"""`dat bench vllm-sampler` and `vllm-target` on the demo's models, as processes of their own: each starts Ray and two engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from dat_ray.bench.verb import KEYS
from dat_ray.cli import main


def measured(bench: str, *settings: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "dat_ray.cli", "bench", bench, "--json", "--rows", "4", "--repeats", "1"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    options = [f"--set={setting}" for setting in settings]
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert set(KEYS) <= set(found)
    assert {key: len(values) for key, values in found["seconds"].items()} == {"actor": 1, "bare": 1, "torch": 1}
    assert found["ratio_to_bare"] == pytest.approx(found["seconds"]["bare"][0] / found["seconds"]["actor"][0])
    return found


@pytest.mark.drill
def test_the_three_forms_of_a_sampler_write_the_same_rows() -> None:
    # Without chance, and in a type in which two engines seldom round a choice apart.
    law = (f"sampler.{setting}" for setting in ("steps=3", "dtype=float32", "temperature=0.0", "guidance=0.0"))
    found = measured("vllm-sampler", *law)
    assert found["rows_equal_to_bare"] == found["rows_equal_to_torch"] == 4


@pytest.mark.drill
def test_the_three_forms_of_a_target_give_the_same_answers() -> None:
    found = measured("vllm-target", "target.dtype=float32")
    assert found["answers_equal_to_bare"] == found["answers_equal_to_torch"] == 4
    assert found["tokens_per_s"] == pytest.approx(found["rows_per_s"] * 24, rel=0.7)


@pytest.mark.parametrize("bench", ["vllm-sampler", "vllm-target"])
@pytest.mark.parametrize("option", ["--rows", "--threads", "--repeats"])
def test_bad_options_are_one_line(capsys: pytest.CaptureFixture[str], bench: str, option: str) -> None:
    assert main(["bench", bench, option, "0"]) == 2
    message = capsys.readouterr().err.strip()
    assert option in message
    assert "\n" not in message
