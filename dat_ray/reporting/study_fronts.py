"""The fronts of a study, as figures: each arm's adapters along its training, and arms at one over-refusal."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dat_ray.config.front_section import FRONTS
from dat_ray.config.study import BASE, Study
from dat_ray.evaluation.results import Metrics
from dat_ray.measures.crossed import pooled_seeds
from dat_ray.measures.fronts import (
    Checkpoint,
    FrontFigure,
    Trail,
    front,
    front_difference,
    front_rate,
    front_seeds,
    mean_success,
    success_at,
    trails,
)
from dat_ray.measures.intervals import NOTHING, Interval
from dat_ray.reporting.collect import CollectedSuite
from dat_ray.reporting.study_figures import (
    BOA,
    ArmDifference,
    Reading,
    Rows,
    StudyMeasure,
    columns,
    corrected,
    measure_name,
    outcome_of,
    rate_over_seeds,
    refused,
)
from dat_ray.reporting.words import percent

# Names of `StudyRun.after`.
_MODEL = re.compile(r"(?P<arm>.+)@(?P<seed>\d+)u(?P<updates>\d+)")
AT, AREA = "at_over_refusal", "mean_up_to_over_refusal"


@dataclass(frozen=True)
class FrontStep:
    """One checkpoint of an arm.

    Attributes:
        updates: of all rounds, in the first seed; 0 for the base model.
        broken, refused: over seeds and behaviors, and over seeds and look-alikes.
    """

    updates: int
    broken: Interval
    refused: Interval


@dataclass(frozen=True)
class ArmFront:
    """One arm along its training.

    Attributes:
        steps: the base model first.
        points: (K, 2), over-refusal and attack success of those that some answers could be judged of, the base model first.
    """

    steps: list[FrontStep]
    points: np.ndarray


@dataclass(frozen=True)
class StudyFronts:
    """All arms along their trainings.

    Attributes:
        over_refusal: at which they are compared.
        measure: what success is: `boa`, an attack, or `attack:share`.
        unread: names of adapters that are no points, since none of their answers could be judged.
        arms: the reference first; none where no answer of the base model could be judged.
        measures: attack success at that over-refusal at most, and on average up to it; without values where all adapters of an
            arm refuse more. The tests of both together are corrected for their number.
        metrics: of the suite.
    """

    over_refusal: float
    measure: str
    unread: list[str]
    arms: dict[str, ArmFront]
    measures: list[StudyMeasure]
    metrics: Metrics

    @property
    def refuse_less(self) -> dict[str, float]:
        """Arms whose least broken adapter, by which they are compared then, refuses less than may be: how much it refuses."""
        ends = {arm: front(found.points)[-1][0] for arm, found in self.arms.items()}
        return {arm: end for arm, end in ends.items() if end < self.over_refusal}


def study_fronts(plan: Study, suite: CollectedSuite) -> StudyFronts:
    """Reads the suite of adapters along the trainings."""
    fronts = plan.config.fronts
    assert fronts is not None, "a study without fronts has no such suite"
    by_model: dict[str, list[dict[str, object]]] = defaultdict(list)
    for row in suite.attempts:
        by_model[row["model"]].append(row)
    base = (0, [BASE] * len(plan.config.seeds))
    models = {arm: [base, *_checkpoints(plan, arm, list(suite.metrics.models))] for arm in columns(plan) if arm != BASE}
    outcome, _ = outcome_of(fronts.measure, suite.metrics.attacks)
    read = partial(_checkpoint, by_model, outcome)
    checkpoints = {arm: [read(names) for _, names in steps] for arm, steps in models.items()}
    unread = [
        name
        for arm, steps in models.items()
        for (_, names), one in zip(steps, checkpoints[arm], strict=True)
        if not one.is_point
        for name in names
    ]
    if BASE in unread:
        return StudyFronts(fronts.over_refusal, fronts.measure, [BASE], {}, [], suite.metrics)
    confidence = suite.metrics.confidence
    found = trails({arm: [one for one in steps if one.is_point] for arm, steps in checkpoints.items()})
    tables = {arm: _tables(found[arm], steps) for arm, steps in checkpoints.items()}
    arms = {}
    for arm, trail in found.items():
        steps = []
        for number, ((updates, _), own) in enumerate(zip(models[arm], tables[arm], strict=True)):
            alike = [other[number] for other in tables.values() if number < len(other)]
            rates = [_rate(own, alike, side, confidence) for side in (0, 1)]
            steps.append(FrontStep(updates, *rates))
        arms[arm] = ArmFront(steps, trail.points)
    at, what = fronts.over_refusal, "Broken" if fronts.measure == BOA else f"{measure_name(fronts.measure)},"
    measures = [
        _measure(found, AT, f"{what} at {percent(at)} over-refusal", partial(success_at, over_refusal=at), confidence),
        _measure(found, AREA, f"{what} on average up to {percent(at)}", partial(mean_success, over_refusal=at), confidence),
    ]
    return StudyFronts(at, fronts.measure, unread, arms, corrected(measures), suite.metrics)


# Outcomes of one checkpoint, those that nobody judged filled in: of attacks and of look-alikes, a row a seed; none where it is no
# point.
Outcomes = tuple[list[dict[str, float]], list[dict[str, float]]]


def _tables(trail: Trail, checkpoints: Sequence[Checkpoint]) -> list[Outcomes]:
    points = iter(zip(trail.broken, trail.refused, strict=True))
    found: list[Outcomes] = []
    for one in checkpoints:
        attacked, asked = next(points) if one.is_point else (np.empty(0), np.empty(0))
        found.append((_rows(attacked), _rows(asked)))
    return found


def _rows(table: np.ndarray) -> list[dict[str, float]]:
    return [{str(unit): float(value) for unit, value in enumerate(row)} for row in table]


def _rate(own: Outcomes, alike: Sequence[Outcomes], side: int, confidence: float) -> Interval:
    """The mean of one side; what seeds add is that of all arms' checkpoints at the same place in their trainings."""
    if not own[side]:
        return NOTHING
    return rate_over_seeds(own[side], False, confidence, pooled_seeds([one[side] for one in alike if one[side]]))


def _checkpoints(plan: Study, arm: str, models: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Updates in the first seed, and the names of the adapters, one a seed.

    Seeds whose trainings have other lengths are put together from the start, and by their ends.
    """
    by_seed: dict[int, list[tuple[int, str]]] = {seed: [] for seed in plan.config.seeds}
    for name in models:
        parts = _MODEL.fullmatch(name)
        if parts is not None and parts["arm"] == arm and int(parts["seed"]) in by_seed:
            by_seed[int(parts["seed"])].append((int(parts["updates"]), name))
    rows = [sorted(found) for found in by_seed.values()]
    common = min(map(len, rows)) - 1
    return [
        (steps[0][0], [name for _, name in steps]) for steps in zip(*([*row[:common], *row[-1:]] for row in rows), strict=True)
    ]


def _checkpoint(by_model: Mapping[str, Rows], outcome: Reading, models: Sequence[str]) -> Checkpoint:
    return Checkpoint([outcome(by_model[name], None) for name in models], [refused(by_model[name]) for name in models])


def _measure(found: Mapping[str, Trail], key: str, name: str, figure: FrontFigure, confidence: float) -> StudyMeasure:
    reference, *others = found
    seeds = front_seeds(list(found.values()), figure)
    rates = {arm: front_rate(trail, figure, confidence, seeds) for arm, trail in found.items()}
    differences = {}
    for arm in others:
        moved = front_difference(found[reference], found[arm], figure, confidence, seeds)
        differences[arm] = ArmDifference(moved.interval, moved.p)
    return StudyMeasure(FRONTS, key, name, rates, differences)
