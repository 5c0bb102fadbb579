"""The distribution gap of a study: each arm over its seeds, from the scored prompts of its models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dat_ray.config.study import BASE, Study
from dat_ray.data.row_types import Row
from dat_ray.evaluation.gap_metrics import STEPS, risk_by_behavior
from dat_ray.evaluation.gap_results import ATTACKED, PLAIN, PROMPT_SETS, REWRITES_SET, TRAINING_PROMPTS
from dat_ray.measures.crossed import Scatter, Seeds, pooled_seeds
from dat_ray.measures.gaps import gap_between, gap_seeds, mean_over
from dat_ray.measures.intervals import Interval
from dat_ray.reporting.collect import CollectedSuite
from dat_ray.reporting.gap_values import BY_TRAINING, WHOLE, GapColumn, GapView
from dat_ray.reporting.study_figures import columns, models_of_arm

# Of one arm: set and kind -> one entry a seed, behavior id to the mean of its prompts.
Tables = dict[tuple[str, str], list[dict[str, float]]]


@dataclass(frozen=True)
class GapSeeds:
    """How far seeds move the figures of an arm, from all arms that were trained.

    Attributes:
        means: set and kind to that of R.
        gaps: gap and kind to that of its size.
    """

    means: Mapping[tuple[str, str], Seeds | None]
    gaps: Mapping[tuple[str, str], Seeds | None]

    @classmethod
    def of(cls, arms: Sequence[Tables]) -> GapSeeds:
        """From the tables of the trained arms."""
        means = {key: pooled_seeds([tables[key] for tables in arms if key in tables]) for key in {k for one in arms for k in one}}
        gaps = {}
        for name, step in STEPS.items():
            for kind in (PLAIN, ATTACKED):
                first, second = (step.first, kind), (step.second, kind)
                pairs = [(tables[first], tables[second]) for tables in arms if {first, second} <= tables.keys()]
                gaps[name, kind] = gap_seeds(pairs, paired=step.paired)
        return cls(means, gaps)


# What of it a column needs: an arm's own, or that of its difference from another.
Part = Callable[[Seeds], Scatter]


def _own(seeds: Seeds) -> Scatter:
    return seeds.mean


def _difference(seeds: Seeds) -> Scatter:
    return seeds.difference


def _added(seeds: Seeds | None, part: Part) -> Scatter | None:
    return None if seeds is None else part(seeds)


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
    found, unbounded = (_columns(plan, rows, end, confidence) for end in (bound, math.inf))
    return GapView(found, bound, confidence, units, plan.reference, unbounded)


def _columns(plan: Study, rows: dict[str, list[list[Row]]], bound: float, confidence: float) -> list[GapColumn]:
    tables = {arm: _tables(seeds, bound) for arm, seeds in rows.items()}
    reference = tables[plan.reference]
    seeds = GapSeeds.of([own for arm, own in tables.items() if arm != BASE])
    found = {}
    for arm in columns(plan):
        moved = {} if arm == plan.reference else _moved(reference, tables[arm])
        found[arm] = _column(arm, rows[arm], tables[arm], moved, bound, confidence, seeds)
    _add_training(plan, found, tables, rows, bound, confidence)
    return list(found.values())


def _add_training(
    plan: Study,
    found: dict[str, GapColumn],
    tables: dict[str, Tables],
    rows: dict[str, list[list[Row]]],
    bound: float,
    confidence: float,
) -> None:
    """Adds the gap of each arm less that of the base model on the same prompts: arms train on other prompts, some of which had
    another gap before any training."""
    base = rows[BASE][0]
    trained = {arm: _moved(_base_tables(base, rows[arm], bound), tables[arm]) for arm in found if arm != BASE}
    seeds = GapSeeds.of(list(trained.values()))
    for arm, own in trained.items():
        column, compared = found[arm], {} if arm == plan.reference else _moved(trained[plan.reference], own)
        gaps = _gaps(own, confidence, seeds, _own)[WHOLE]
        moved = _gaps(compared, confidence, seeds, _difference)[WHOLE]
        if gaps:
            more = {BY_TRAINING: moved} if moved else {}
            found[arm] = replace(column, gaps={**column.gaps, BY_TRAINING: gaps}, moved_gaps={**column.moved_gaps, **more})


def _base_tables(base: list[Row], seeds: list[list[Row]], bound: float) -> Tables:
    """R of the base model on written prompts, and on those that each seed of an arm was trained on, where it was asked."""
    sets: dict[str, list[Row]] = {}
    for row in base:
        sets.setdefault(row["prompt_set"], []).append(row)
    asked = {name: places_of(own) for name, own in sets.items() if name.partition("/")[0] == TRAINING_PROMPTS}
    found: Tables = {}
    for rows in seeds:
        wanted = places_of([row for row in rows if row["prompt_set"] == TRAINING_PROMPTS])
        name = next((name for name, places in asked.items() if places == wanted), None)
        for one, own in ((TRAINING_PROMPTS, name), (REWRITES_SET, REWRITES_SET)):
            for kind in (PLAIN, ATTACKED):
                values = {} if own is None else risk_by_behavior(base, own, kind, bound)
                found.setdefault((one, kind), []).append(values)
    return {key: table for key, table in found.items() if all(table)}


def places_of(rows: list[Row]) -> set[tuple[Any, ...]]:
    """What tells the prompts of a set apart; of a record, by the digests of their texts."""
    return {tuple(row.get(name) for name in ("behavior_id", "source_id", "prompt", "target")) for row in rows}


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


def _column(
    arm: str, runs: list[list[Row]], tables: Tables, moved: Tables, bound: float, confidence: float, seeds: GapSeeds
) -> GapColumn:
    every = [row for rows in (runs[:1] if arm == BASE else runs) for row in rows if row["prompt_set"] in PROMPT_SETS]
    values = {
        one: {
            kind: [row[kind] for row in every if row["prompt_set"] == one and row[kind] is not None] for kind in (PLAIN, ATTACKED)
        }
        for one in PROMPT_SETS
    }
    trained = [row for row in every if row["prompt_set"] == TRAINING_PROMPTS and row["error"] is None]
    own = _means(tables, confidence, seeds, _own)
    # The base model is one model under every seed.
    compared = _own if arm == BASE else _difference
    return GapColumn(
        arm,
        {one: {kind: _within(mean, bound) for kind, mean in kinds.items()} for one, kinds in own.items()},
        _gaps(tables, confidence, seeds, _own),
        {
            one: {kind: sum(abs(value) > bound for value in found) / len(found) for kind, found in kinds.items() if found}
            for one, kinds in values.items()
        },
        (sum(bool(row["is_goal"]) for row in trained), len(trained)),
        sum(row["error"] is not None for row in every),
        _means(moved, confidence, seeds, compared),
        _gaps(moved, confidence, seeds, compared),
    )


def _within(mean: Interval, bound: float) -> Interval:
    """A mean of logarithms of probabilities, none of them below -`bound`, lies between that and 0, and so do its limits."""
    low, high = (None if end is None else min(0.0, max(-bound, end)) for end in (mean.low, mean.high))
    return replace(mean, low=low, high=high)


def _means(tables: Tables, confidence: float, seeds: GapSeeds, part: Part) -> dict[str, dict[str, Interval]]:
    """Set to kind to R."""
    found: dict[str, dict[str, Interval]] = {}
    for one in PROMPT_SETS:
        for kind in (PLAIN, ATTACKED):
            if (one, kind) in tables:
                found.setdefault(one, {})[kind] = mean_over(
                    tables[one, kind], confidence, _added(seeds.means.get((one, kind)), part)
                )
    return found


def _gaps(tables: Tables, confidence: float, seeds: GapSeeds, part: Part) -> dict[str, dict[str, Interval]]:
    """Gap to kind to its size. Of differences it is how much larger an arm's gap is than the reference's: where the two sets are
    of other behaviors, each behavior's difference between the arms counts on its own side."""
    return {
        name: {
            kind: gap_between(
                tables[step.first, kind],
                tables[step.second, kind],
                paired=step.paired,
                confidence=confidence,
                seeds=_added(seeds.gaps[name, kind], part),
            )
            for kind in (PLAIN, ATTACKED)
            if {(step.first, kind), (step.second, kind)} <= tables.keys()
        }
        for name, step in STEPS.items()
    }
