"""What is told of the study `demo-arms` is what its records say."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from dat_ray.config.study import read_study
from dat_ray.pipeline.study import merge_study
from docs.study_picture import FIGURES, PICTURE, draw, read_figures

STUDY = Path(__file__).parents[3] / "studies" / "demo-arms"
RESULT = STUDY / "result"


@pytest.mark.slow
def test_the_page_and_the_tables_come_from_the_records(tmp_path: Path) -> None:
    merge_study(read_study("demo-arms", []), [str(STUDY)], str(tmp_path / "whole"))
    tables = sorted(path.relative_to(RESULT) for path in (RESULT / "tables").rglob("*.*"))
    assert len(tables) == 8
    for table in tables:
        assert (tmp_path / "whole" / table).read_text(encoding="utf-8") == (RESULT / table).read_text(encoding="utf-8"), table


def test_the_picture_is_that_of_the_tables() -> None:
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    assert read_figures(RESULT, figures["title"]) == figures
    assert PICTURE.read_text(encoding="utf-8") == draw(figures), "draw it again: python docs/study_picture.py"


def _points(value: str) -> str:
    return f"{round(100 * float(value)):+d}".replace("-", "−")


def test_the_page_s_primary_differences_are_the_tables() -> None:
    with (RESULT / "tables" / "heldout" / "table.csv").open(newline="", encoding="utf-8") as stream:
        rows = {row["model"]: row for row in csv.DictReader(stream) if row["measure"] == "prompts_rewrites:share"}
    said = " ".join((STUDY / "README.md").read_text(encoding="utf-8").split())
    assert len(rows) == 8
    names = {"base": "base model", "goals": "goals", "cat": "CAT", "mixat": "MixAT", "diffusion_only": "diffusion-only"}
    for arm, name in names.items():
        ends = ", ".join(_points(rows[arm][end]) for end in ("difference_low", "difference_high"))
        told = f"{name} {round(100 * float(rows[arm]['value']))}% ({_points(rows[arm]['difference'])} [{ends}]"
        assert told in said, told
    dat = ", ".join(str(round(100 * float(rows["dat"][end]))) for end in ("low", "high"))
    assert f"DAT's {round(100 * float(rows['dat']['value']))}% [{dat}]" in said
