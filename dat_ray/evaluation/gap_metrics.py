"""From scored prompts (rows of schema RISKS) to the distribution gap: R on each set and the gaps between sets."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dat_ray.config.evaluation import GapConfig
from dat_ray.data.row_types import RowView
from dat_ray.evaluation.estimates import Rate
from dat_ray.evaluation.gap_results import (
    ATTACKED,
    FRESH_PROMPTS,
    FRESH_TARGETS,
    PLAIN,
    PROMPT_SETS,
    REWRITES_SET,
    TRAINING_PROMPTS,
    DistributionGap,
    GapOfSets,
    MeanRisk,
    RiskGap,
    SetRisk,
)
from dat_ray.measures.gaps import clipped, gap_between, least_distance, mean_over


class GapStep(NamedTuple):
    """From one set to another.

    Attributes:
        first, second: the sets.
        paired: whether they are of the same behaviors.
    """

    first: str
    second: str
    paired: bool


STEPS = {
    "new_prompts": GapStep(TRAINING_PROMPTS, FRESH_PROMPTS, True),
    "new_targets": GapStep(FRESH_PROMPTS, FRESH_TARGETS, False),
    "people": GapStep(FRESH_TARGETS, REWRITES_SET, True),
    "whole": GapStep(TRAINING_PROMPTS, REWRITES_SET, False),
}


def risk_by_behavior(rows: Iterable[RowView], prompt_set: str, kind: str, bound: float) -> dict[str, float]:
    """Behavior id to the mean of its clipped values.

    Args:
        rows: of one model.
        prompt_set: whose.
        kind: `plain` or `attacked`.
        bound: M.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["prompt_set"] == prompt_set and row[kind] is not None:
            groups[row["behavior_id"]].append(clipped(row[kind], bound))
    return {key: math.fsum(values) / len(values) for key, values in groups.items()}


def distribution_gap(rows: Sequence[RowView], config: GapConfig, attack_steps: int, confidence: float) -> DistributionGap:
    """The gap of one model.

    Args:
        rows: its scored prompts.
        config: with the bound.
        attack_steps: of `training.attack`.
        confidence: of the intervals.
    """
    present = [one for one in PROMPT_SETS if any(row["prompt_set"] == one for row in rows)]
    kinds = [PLAIN, ATTACKED] if attack_steps else [PLAIN]
    bound = config.bound
    means = {(one, kind): risk_by_behavior(rows, one, kind, bound) for one in present for kind in kinds}

    def mean(prompt_set: str, kind: str) -> MeanRisk:
        found = mean_over([means[prompt_set, kind]], confidence)
        values = [row[kind] for row in rows if row["prompt_set"] == prompt_set and row[kind] is not None]
        share = sum(abs(value) > bound for value in values) / len(values) if values else None
        return MeanRisk(
            mean=found.value, low=found.low, high=found.high, n=found.n, clipped=Rate(rate=share, low=None, high=None)
        )

    def gap(step: GapStep, kind: str) -> RiskGap:
        first, second = ([means[one, kind]] for one in (step.first, step.second))
        found = gap_between(first, second, paired=step.paired, confidence=confidence)
        least = None if found.value is None else least_distance(found.value, bound)
        return RiskGap(gap=found.value, low=found.low, high=found.high, n=found.n, least_distance=least)

    def set_risk(prompt_set: str) -> SetRisk:
        own = [row for row in rows if row["prompt_set"] == prompt_set]
        scored = [row for row in own if row["error"] is None]
        return SetRisk(
            prompts=len(scored),
            goals=sum(row["is_goal"] for row in scored),
            errors=len(own) - len(scored),
            plain=mean(prompt_set, PLAIN),
            attacked=mean(prompt_set, ATTACKED) if attack_steps else None,
        )

    def between(step: GapStep) -> GapOfSets:
        return GapOfSets(
            first=step.first,
            second=step.second,
            paired=step.paired,
            plain=gap(step, PLAIN),
            attacked=gap(step, ATTACKED) if attack_steps else None,
        )

    return DistributionGap(
        bound=bound,
        attack_steps=attack_steps,
        sets={one: set_risk(one) for one in present},
        gaps={name: between(step) for name, step in STEPS.items() if step.first in present and step.second in present},
    )
