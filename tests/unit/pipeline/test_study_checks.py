"""What a study looks at before it starts: each recipe's models, and each set of rows once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dat_ray.config.loading import load_recipe
from dat_ray.config.schema import Recipe
from dat_ray.config.study import read_study
from dat_ray.pipeline import study as studying


def test_rows_are_looked_at_once_and_models_of_every_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole: list[str] = []
    rest: list[str] = []

    def noted(into: list[str]) -> Callable[[Recipe], None]:
        return lambda recipe: into.append(f"{recipe.training.updates} {recipe.behaviors.limit} {recipe.evaluation.attacks}")

    monkeypatch.setattr(studying, "check_inputs", noted(whole))
    monkeypatch.setattr(studying, "check_the_rest", noted(rest))
    tree = {
        "name": "x",
        "seeds": [1, 2],
        "settings": {"training": {"updates": 34}},
        "arms": {
            "one": {},
            "two": {"settings": {"training": {"updates": 5}}},
            "three": {"settings": {"behaviors": {"limit": 9}}},
        },
        "suites": {"heldout": {}, "direct": {"attacks": ["direct"]}},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tree))
    plan = read_study(str(path), [])
    studying._check_inputs(plan)
    both = ("direct", "inpainting")
    assert whole == [f"34 None {both}", f"34 9 {both}"]
    # Another arm, and another suite, of rows that were looked at; seeds change nothing.
    assert rest == [f"5 None {both}", "34 None ('direct',)"]


def test_the_rest_is_attacks_tasks_and_models(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    for name in ("check_attacks", "check_tasks", "check_models"):
        monkeypatch.setattr(studying, name, lambda _, name=name: seen.append(name))
    studying.check_the_rest(load_recipe("demo"))
    assert seen == ["check_attacks", "check_tasks", "check_models"]
