"""What an attack is made from, for tests of one attack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dat_ray.config.schema import Recipe
from dat_ray.evaluation.attacks.base import Setup
from dat_ray.evaluation.questions import Behavior, SeedScope


def setup(behaviors: Sequence[Behavior], suite: str = "s", **evaluation: Any) -> Setup:
    """A suite's, with these fields of `evaluation`."""
    tree = {
        "name": "test",
        "behaviors": {"path": "builtin:demo", "heldout": {"path": "builtin:demo-heldout"}},
        "sampler": {"model": "x", "prompt_tokens": [4, 8, 12], "steps": 4},
        "target": {"model": "y"},
        "training": {"retain": {"path": "builtin:retain"}},
        "evaluation": {"attacker": {"model": "z"}, **evaluation},
    }
    return Setup(Recipe.model_validate(tree), SeedScope(suite, 0), behaviors, {"sampler.model": "w"})
