"""The last lines of a run."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from dat_ray.reporting.closing import closing
from tests.unit.reporting.synthetic_run import finished_run, new_run


def test_the_finding_and_the_rates_before_and_after_are_shown(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=130)
    parts = list(closing(finished_run(tmp_path / "run")))
    assert len(parts) == 2
    for part in parts:
        console.print(part)
    said = stream.getvalue()
    assert said.startswith(("Attack success fell from ", "Proxy attack success fell from "))
    rows = [line for line in said.splitlines() if line.startswith("│")]
    named = [line.split("│")[1].strip() for line in rows]
    assert named == ["Direct request", "In-painted prompts", "Any attack", "Over-refusal"]
    assert all("[" in line for line in rows), "no rate without its interval"
    assert "Judged by" in said


def test_a_run_that_was_not_evaluated_says_nothing(tmp_path: Path) -> None:
    assert list(closing(new_run(tmp_path / "run"))) == []
