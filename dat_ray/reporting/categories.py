"""Outcomes by category of behavior, from stored attempts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from dat_ray.evaluation.outcomes import broken, refusals
from dat_ray.evaluation.questions import HARMLESS_PROMPTS, OVER_REFUSAL
from dat_ray.measures.intervals import Interval, wilson

Attempts = Sequence[Mapping[str, Any]]
Categories = Mapping[str, str | None]


def broken_by_category(attempts: Attempts, categories: Categories, confidence: float) -> dict[str, Interval]:
    """Share of behaviors that any attack broke, in each category; behaviors without one are left out.

    Args:
        attempts: of one model.
        categories: behavior id to its category.
        confidence: of the Wilson intervals.
    """
    return _by_category(broken(row for row in attempts if row["attack"] not in HARMLESS_PROMPTS), categories, confidence)


def refused_by_category(attempts: Attempts, categories: Categories, confidence: float) -> dict[str, Interval]:
    """Share of harmless look-alikes that were refused, in each category; arguments as of `broken_by_category`."""
    return _by_category(refusals(row for row in attempts if row["attack"] == OVER_REFUSAL), categories, confidence)


def _by_category(outcomes: Mapping[str, bool], categories: Categories, confidence: float) -> dict[str, Interval]:
    grouped: dict[str, list[bool]] = defaultdict(list)
    for behavior, outcome in outcomes.items():
        category = categories.get(behavior)
        if category:
            grouped[category].append(outcome)
    return {name: wilson(sum(values), len(values), confidence) for name, values in sorted(grouped.items())}
