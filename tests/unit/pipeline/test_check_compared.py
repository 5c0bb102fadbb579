"""What is looked at before named models are compared: only what will be differentiated has to be trainable."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from dat_ray.config.loading import load_recipe
from dat_ray.data.rundir import RunDir
from dat_ray.evaluation.compared import Model
from dat_ray.pipeline import evaluations

WHOLE, TUNED = Model("whole", None, "w", "some/model"), Model("tuned", "folder", "a", "some/base")


@pytest.mark.parametrize(
    ("settings", "looked_at"),
    [
        (["evaluation.kl_rows=0"], []),
        # The drift is of an adapter; a whole model has no base to have drifted from.
        (["evaluation.kl_rows=4"], ["some/base"]),
        (["evaluation.kl_rows=0", "evaluation.attacks=[direct, embedding]"], ["some/model", "some/base"]),
    ],
)
def test_a_model_that_nothing_differentiates_need_not_be_trainable(
    settings: list[str], looked_at: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    monkeypatch.setattr(evaluations, "named_models", lambda recipe, models: [WHOLE, TUNED])
    monkeypatch.setattr(evaluations, "check_inputs", lambda recipe, trains: None)
    monkeypatch.setattr(evaluations, "check_target_adapter", lambda config, adapter, field: None)
    monkeypatch.setattr(evaluations, "check_engine", lambda role, config, field: None)
    monkeypatch.setattr(
        evaluations,
        "find_source",
        lambda model, field, revision, weights: SimpleNamespace(base=None, folder=model),
    )
    monkeypatch.setattr(evaluations, "check_trainable", lambda folder, field: found.append(folder))
    recipe = load_recipe("demo", settings)
    assert evaluations.check_compared(recipe, RunDir(str(tmp_path)), "whole=some/model,tuned=folder") == [WHOLE, TUNED]
    assert found == looked_at
