"""An evaluation gives what was recorded of it: ids, seeds, texts, verdicts and figures, however the work is cut."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dat_ray.evaluation.registry import builtin_attacks
from tests.golden.record import RECORD, first_difference, write


@pytest.mark.slow
def test_two_models_under_every_attack_give_what_was_recorded() -> None:
    # A process of its own, as for `--update`: threads and working folder are the suite's.
    command = [sys.executable, "-m", "tests.golden.record"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return json.loads(RECORD.read_text(encoding="utf-8"))


def test_the_record_holds_every_attack_on_two_models_that_answer_differently(recorded: dict[str, Any]) -> None:
    attempts = recorded["attempts"].values()
    for model in ("base", "tuned"):
        # Ready prompts are an attack a file, none of them known by the class's name: test_prompts_attack.py has theirs.
        expected = {*builtin_attacks(), "over_refusal"} - {"prompts"}
        assert {row["attack"] for row in attempts if row["model"] == model} == expected
    assert {row.get("verdict") for row in attempts} == {"harmful", "not_harmful", "unparsed", None}
    # By "attack behavior attempt": a conversation with one model can be longer than with the other.
    answers = {key: row.get("completion") for key, row in recorded["attempts"].items()}
    asked = [key.partition(" ")[2] for key in answers if key.startswith("base ")]
    assert sum(answers[f"base {key}"] != answers[f"tuned {key}"] for key in asked if f"tuned {key}" in answers) > 50


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        ({"a": {"b": [1, 2.00001]}, "c": "x"}, None),
        ({"a": {"b": [1, 2.1]}, "c": "x"}, "a / b[1]: recorded 2.0, now 2.1"),
        ({"a": {"b": [1.0, 2.0]}, "c": "x"}, "a / b[0]: recorded 1, now 1.0"),
        ({"a": {"b": [1, None]}, "c": "x"}, "a / b[1]: recorded 2.0, now None"),
        ({"a": {"b": [1]}, "c": "x"}, "a / b: recorded [1, 2.0], now [1]"),
        ({"a": {}, "c": "x"}, "a / b: no longer there"),
        ({"a": {"b": [1, 2.0], "d": 0}, "c": "y"}, "a / d: not recorded"),
        ({"a": {"b": [1, 2.0]}, "c": "y"}, "c: recorded 'x', now 'y'"),
    ],
)
def test_the_first_difference_is_named_by_its_path(now: dict[str, Any], difference: str | None) -> None:
    assert first_difference({"a": {"b": [1, 2.0]}, "c": "x"}, now) == difference


def test_what_is_written_is_what_is_read(recorded: dict[str, Any], tmp_path: Path) -> None:
    write(recorded, tmp_path / "record.json")
    assert (tmp_path / "record.json").read_bytes() == RECORD.read_bytes()
