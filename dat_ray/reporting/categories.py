"""Attack success by category of behavior, from stored attempts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from dat_ray.evaluation.attacks import OVER_REFUSAL
from dat_ray.evaluation.intervals import Interval, wilson
from dat_ray.evaluation.metrics import broken

Attempts = Sequence[Mapping[str, Any]]


def by_category(attempts: Attempts, categories: Mapping[str, str | None], confidence: float) -> dict[str, Interval]:
    """Share of behaviors that any attack broke, in each category; behaviors without one are left out.

    Args:
        attempts: of one model.
        categories: behavior id to its category.
        confidence: of the Wilson intervals.
    """
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for behavior, was_broken in broken(row for row in attempts if row["attack"] != OVER_REFUSAL).items():
        category = categories.get(behavior)
        if category:
            outcomes[category].append(was_broken)
    return {name: wilson(sum(values), len(values), confidence) for name, values in sorted(outcomes.items())}
