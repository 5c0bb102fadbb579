"""What the driver says of a training while its workers train."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir
from dat_ray.progress import Progress
from dat_ray.training.counts import ResponseCount, TableCount, write_counts
from dat_ray.training.driver import _shown


def test_what_became_of_the_rows_is_said_once_and_sets_the_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "behaviors": {"path": "x", "heldout": {"path": "x"}},
            "sampler": {"model": "x"},
            "target": {"model": "x"},
            "training": {"epochs": 2, "harmful_rows": 4, "retain": {"path": "x"}},
        }
    )
    run, responses = RunDir(str(tmp_path)), ResponseCount(0, 3, 100, 80)
    counts = {"harmful": TableCount(10, ("c1", "c7"), {"target": responses, "refusal": responses}, 128, 8)}
    # Ten rows would be five updates of two epochs; the eight that have room are four.
    with Progress("train", 5, "updates", stream=io.StringIO()) as progress:
        with _shown(run, recipe, progress):
            write_counts(run.training(0), counts)
        assert progress.total == 4
        with _shown(run, recipe, progress):
            pass
    said = capsys.readouterr().err
    assert (
        said.count("harmful rows: 8, prompts whole; targets cut: 3 to the room behind the prompt (80% of their tokens kept)") == 2
    )
    assert "2 of 10 left out, whose prompts leave no room for 8 response tokens in 128 (c1, c7)" in said
