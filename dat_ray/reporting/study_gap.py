"""The distribution gap of a study: each arm over its seeds, from the scored prompts of its models."""

from __future__ import annotations

from dat_ray.config.study import BASE, Study
from dat_ray.data.row_types import Row
from dat_ray.evaluation.gap_metrics import STEPS, risk_by_behavior
from dat_ray.evaluation.gap_results import ATTACKED, PLAIN, PROMPT_SETS, TRAINING_PROMPTS
from dat_ray.measures.gaps import gap_between, mean_over
from dat_ray.reporting.collect import CollectedSuite
from dat_ray.reporting.gap_values import GapColumn, GapView
from dat_ray.reporting.study_figures import columns, models_of_arm

# Of one arm: set and kind -> one entry a seed, behavior id to the mean of its prompts.
Tables = dict[tuple[str, str], list[dict[str, float]]]


def study_gap(plan: Study, suite: CollectedSuite, units: str) -> GapView | None:
    """The gap of every arm in one suite; None where it was not measured.

    Args:
        plan: of the study.
        suite: with its scored prompts.
        units: what the intervals speak of.
    """
    if not suite.risks:
        return None
    confidence = suite.metrics.confidence
    bound = next(model.gap.bound for model in suite.metrics.models.values() if model.gap is not None)
    by_model: dict[str, list[Row]] = {}
    for row in suite.risks:
        by_model.setdefault(row["model"], []).append(row)
    found = [
        _column(arm, [by_model.get(one, []) for one in models_of_arm(plan, arm)], bound, confidence) for arm in columns(plan)
    ]
    return GapView(found, bound, confidence, units, plan.reference)


def _column(arm: str, seeds: list[list[Row]], bound: float, confidence: float) -> GapColumn:
    every = [row for rows in (seeds[:1] if arm == BASE else seeds) for row in rows]
    kinds = [kind for kind in (PLAIN, ATTACKED) if any(row[kind] is not None for row in every)]
    tables: Tables = {
        (one, kind): [risk_by_behavior(rows, one, kind, bound) for rows in seeds] for one in PROMPT_SETS for kind in kinds
    }
    whole = {key for key, table in tables.items() if all(table)}
    values = {kind: [row[kind] for row in every if row[kind] is not None] for kind in kinds}
    trained = [row for row in every if row["prompt_set"] == TRAINING_PROMPTS and row["error"] is None]
    return GapColumn(
        arm,
        {
            one: {kind: mean_over(tables[one, kind], confidence) for kind in kinds if (one, kind) in whole}
            for one in PROMPT_SETS
            if any((one, kind) in whole for kind in kinds)
        },
        {
            name: {
                kind: gap_between(tables[step.first, kind], tables[step.second, kind], paired=step.paired, confidence=confidence)
                for kind in kinds
                if {(step.first, kind), (step.second, kind)} <= whole
            }
            for name, step in STEPS.items()
        },
        {kind: sum(abs(value) > bound for value in found) / len(found) for kind, found in values.items()},
        (sum(bool(row["is_goal"]) for row in trained), len(trained)),
        sum(row["error"] is not None for row in every),
    )
