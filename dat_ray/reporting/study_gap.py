"""The distribution gap of a study: each arm over its seeds, from the scored prompts of its models."""

from __future__ import annotations

from dat_ray.config.study import BASE, Study
from dat_ray.data.row_types import Row
from dat_ray.evaluation.gap_metrics import STEPS, risk_by_behavior
from dat_ray.evaluation.gap_results import ATTACKED, PLAIN, PROMPT_SETS, TRAINING_PROMPTS
from dat_ray.measures.gaps import gap_between, mean_over
from dat_ray.measures.intervals import Interval
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
    rows = {arm: [by_model.get(one, []) for one in models_of_arm(plan, arm)] for arm in columns(plan)}
    tables = {arm: _tables(seeds, bound) for arm, seeds in rows.items()}
    reference = tables[plan.reference]
    found = [
        _column(arm, rows[arm], tables[arm], {} if arm == plan.reference else _moved(reference, tables[arm]), bound, confidence)
        for arm in columns(plan)
    ]
    return GapView(found, bound, confidence, units, plan.reference)


def _tables(seeds: list[list[Row]], bound: float) -> Tables:
    """Those that every seed has."""
    kinds = [kind for kind in (PLAIN, ATTACKED) if any(row[kind] is not None for rows in seeds for row in rows)]
    found = {(one, kind): [risk_by_behavior(rows, one, kind, bound) for rows in seeds] for one in PROMPT_SETS for kind in kinds}
    return {key: table for key, table in found.items() if all(table)}


def _moved(reference: Tables, tables: Tables) -> Tables:
    """An arm minus the reference, seed by seed and behavior by behavior."""
    found = {}
    for key in reference.keys() & tables.keys():
        pairs = zip(reference[key], tables[key], strict=True)
        found[key] = [{one: after[one] - before[one] for one in sorted(before.keys() & after.keys())} for before, after in pairs]
    return {key: table for key, table in found.items() if all(table)}


def _column(arm: str, seeds: list[list[Row]], tables: Tables, moved: Tables, bound: float, confidence: float) -> GapColumn:
    every = [row for rows in (seeds[:1] if arm == BASE else seeds) for row in rows]
    values = {kind: [row[kind] for row in every if row[kind] is not None] for kind in (PLAIN, ATTACKED)}
    trained = [row for row in every if row["prompt_set"] == TRAINING_PROMPTS and row["error"] is None]
    return GapColumn(
        arm,
        _means(tables, confidence),
        _gaps(tables, confidence),
        {kind: sum(abs(value) > bound for value in found) / len(found) for kind, found in values.items() if found},
        (sum(bool(row["is_goal"]) for row in trained), len(trained)),
        sum(row["error"] is not None for row in every),
        _means(moved, confidence),
        _gaps(moved, confidence),
    )


def _means(tables: Tables, confidence: float) -> dict[str, dict[str, Interval]]:
    """Set to kind to R."""
    found: dict[str, dict[str, Interval]] = {}
    for one in PROMPT_SETS:
        for kind in (PLAIN, ATTACKED):
            if (one, kind) in tables:
                found.setdefault(one, {})[kind] = mean_over(tables[one, kind], confidence)
    return found


def _gaps(tables: Tables, confidence: float) -> dict[str, dict[str, Interval]]:
    """Gap to kind to its size. Of differences it is how much larger an arm's gap is than the reference's: where the two sets are
    of other behaviors, each behavior's difference between the arms counts on its own side."""
    return {
        name: {
            kind: gap_between(tables[step.first, kind], tables[step.second, kind], paired=step.paired, confidence=confidence)
            for kind in (PLAIN, ATTACKED)
            if {(step.first, kind), (step.second, kind)} <= tables.keys()
        }
        for name, step in STEPS.items()
    }
