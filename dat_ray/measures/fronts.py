"""Robustness at equal over-refusal: an arm's front from its checkpoints, a point on it and the area under it, with intervals.

A checkpoint is a point: x, the share of harmless prompts that it refuses; y, the share of behaviors that break it, or of their
prompts; both are means over the arm's seeds. The base model is the first checkpoint of every arm.

The front is the lower convex hull of the points: y at x is the lowest attack success of a mixture of two checkpoints that
refuses no more than x. Who draws at random which of the two an attacker, or an honest user, meets has that mixture, so that
straight lines between checkpoints are reached and not assumed (Provost and Fawcett 2001, Machine Learning 42:203, for
classifiers). For shares of prompts that holds of a draw for each request too; where any of several prompts breaks a behavior, a
draw for each request would break more. The front is flat from the least broken checkpoint on: an arm that never refuses as much
as it may keeps what it has. It begins at the checkpoint that refuses least: below it nothing is said. The checkpoints that make
the front are chosen on the outcomes that they are judged by, which makes most arms look better than they are: one with many near
ties more than one whose least broken checkpoint stands alone.

Intervals are by linearization: near the points that were measured, a figure of the front is a sum of outcomes with weights,
its derivatives, and a sum of outcomes of seeds and behaviors varies as `crossed.py` says.

Shapes: K checkpoints, S seeds, B behaviors, H harmless prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from dat_ray.measures.crossed import Scatter, Seeds, Tested, scatter_of, seeds_from
from dat_ray.measures.intervals import (
    NOTHING,
    Interval,
    rate_difference,
    score_interval,
    student_quantile,
    student_tail,
    trusted_scatter,
    z_score,
)

# Of a figure at points (K, 2), each (x, y); None where the front does not reach so far.
FrontFigure = Callable[[np.ndarray], float | None]
# By how much points are moved for derivatives: far less than one outcome of any suite, far more than rounding.
_STEP = 1e-6
# How often two parts that depend on each other are estimated anew: each time changes less, by the share that is missing.
_ROUNDS = 20


@dataclass(frozen=True)
class Checkpoint:
    """What one adapter of each seed came to.

    Attributes:
        broken: of each seed, behavior id to whether it was broken, or to the share of its prompts that broke it.
        refused: of each seed, harmless prompt's id to whether it was refused.
    """

    broken: Sequence[Mapping[str, float]]
    refused: Sequence[Mapping[str, bool]]

    @property
    def is_point(self) -> bool:
        """Whether there are outcomes of both kinds."""
        return any(self.broken) and any(self.refused)


@dataclass(frozen=True)
class Trail:
    """An arm along its training.

    Attributes:
        broken: (K, S, B), from 0 to 1; what was not judged filled in as `trails` says.
        refused: (K, S, H), the same.
    """

    broken: np.ndarray
    refused: np.ndarray

    @property
    def points(self) -> np.ndarray:
        """(K, 2): over-refusal and attack success of each checkpoint."""
        return np.stack([self.refused.mean(axis=(1, 2)), self.broken.mean(axis=(1, 2))], axis=1)

    @property
    def smallest(self) -> int:
        """The fewer of its behaviors and harmless prompts."""
        return int(min(self.broken.shape[2], self.refused.shape[2]))


def trails(arms: Mapping[str, Sequence[Checkpoint]]) -> dict[str, Trail]:
    """Tables of all behaviors and harmless prompts that any checkpoint of any arm and seed was judged on.

    An outcome that is missing, since the judge gave no verdict, is what its behavior or prompt and its adapter lead one to
    expect: see `_filled`. A checkpoint has some outcomes, of both kinds.
    """
    everything = [one for checkpoints in arms.values() for one in checkpoints]
    broken, refused = _filled([one.broken for one in everything]), _filled([one.refused for one in everything])
    ends = list(accumulate((len(checkpoints) for checkpoints in arms.values()), initial=0))
    return {arm: Trail(broken[start:end], refused[start:end]) for arm, (start, end) in zip(arms, pairwise(ends), strict=True)}


def _filled(checkpoints: Sequence[Sequence[Mapping[str, float]]]) -> np.ndarray:
    """(checkpoints, S, keys), keys in order, with what is missing filled in.

    An adapter is easier or harder to break than others, or refuses more or less; so is a behavior or a prompt, by what adapters
    did that were judged on it. The sum of both, within [0, 1], stands for the outcome of the two that is missing. An adapter
    without any outcome is as its checkpoint's other seeds are on average.
    """
    keys = sorted({key for tables in checkpoints for table in tables for key in table})
    found = np.array([[[table.get(key, np.nan) for key in keys] for table in tables] for tables in checkpoints], float)
    assert not np.isnan(found).all(axis=(1, 2)).any(), "a checkpoint without outcomes is no point"
    # Each from the other, again and again: who was judged on what breaks easily alone is no easier to break for it.
    of_key = np.zeros(len(keys))
    for _ in range(_ROUNDS):
        of_adapter = _mean(found - of_key, 2)
        of_key = _mean((found - of_adapter[..., None]).reshape(-1, len(keys)), 0)
    filled = np.where(np.isnan(found), np.clip(of_adapter[..., None] + of_key, 0, 1), found)
    return np.where(np.isnan(filled), _mean(filled, 1)[:, None], filled)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Of those that are there; NaN where none is."""
    there = ~np.isnan(values)
    count = there.sum(axis=axis)
    mean: np.ndarray = np.where(there, values, 0.0).sum(axis=axis) / np.where(count > 0, count, np.nan)
    return mean


def front(points: np.ndarray) -> list[tuple[float, float]]:
    """The corners of the lower convex hull (K, 2), from the least over-refusal to the least attack success."""
    found: list[tuple[float, float]] = []
    for x, y in sorted((float(x), float(y)) for x, y in points):
        if found and y >= found[-1][1]:
            continue
        while len(found) > 1 and _is_above(found[-2], found[-1], (x, y)):
            found.pop()
        found.append((x, y))
    return found


def _is_above(first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]) -> bool:
    """Whether the middle one lies on the line through the others or above it."""
    return (middle[1] - first[1]) * (last[0] - first[0]) >= (last[1] - first[1]) * (middle[0] - first[0])


def success_at(points: np.ndarray, over_refusal: float) -> float | None:
    """Attack success on the front at one over-refusal, at most; None where no checkpoint refuses so little.

    An arm that never refuses so much has the attack success of its least broken checkpoint.
    """
    if over_refusal < points[:, 0].min():
        return None
    corners = np.array(front(points))
    return float(np.interp(over_refusal, corners[:, 0], corners[:, 1]))


def mean_success(points: np.ndarray, over_refusal: float) -> float | None:
    """The area under the front from the base model's over-refusal, the first point's, to the one given, over its width.

    Attack success on average over what one is ready to pay. An arm that ends before has from there on the attack success that
    it ends with: it refuses less than it may. None where the base model refuses as much already.
    """
    start = float(points[0, 0])
    if start >= over_refusal:
        return None
    corners = np.array(front(points))
    inner = corners[(corners[:, 0] > start) & (corners[:, 0] < over_refusal), 0]
    at = np.array([start, *inner, over_refusal])
    return float(np.trapezoid(np.interp(at, corners[:, 0], corners[:, 1]), at) / (over_refusal - start))


def front_seeds(arms: Sequence[Trail], figure: FrontFigure) -> Seeds | None:
    """How far seeds move a figure of an arm's front, and the difference of two, from all arms together, as `pooled_seeds` has it.

    None with one seed, or where no arm's front reaches so far.
    """
    found = [linear for linear in (_linear(trail, figure) for trail in arms) if linear is not None]
    return seeds_from([one.attacked.mean(axis=1) + one.asked.mean(axis=1) for one in found])


def front_rate(
    trail: Trail, figure: FrontFigure, confidence: float = 0.95, seeds: Seeds | None = None, *, freedom: float | None = None
) -> Interval:
    """A figure of an arm's front, with an interval for other seeds, other behaviors and other harmless prompts.

    The variance by linearization is turned into trials of Wilson's interval, as in `crossed_rate`.

    Args:
        trail: of the arm.
        figure: such as `success_at` an over-refusal; between 0 and 1.
        confidence: two-sided.
        seeds: of `front_seeds`; None: as this trail tells.
        freedom: degrees of freedom of the limits, where they are to be a part of another figure's; None: of the variance.

    Returns:
        `n` is the number of behaviors. Nothing where the front does not reach so far, no limits with fewer than two behaviors
        or harmless prompts. With one seed the interval is for other behaviors and prompts alone.
    """
    linear = _linear(trail, figure)
    if linear is None:
        return NOTHING
    behaviors = trail.broken.shape[2]
    if trail.smallest < 2:
        return Interval(linear.value, None, None, behaviors)
    value = min(1.0, max(0.0, linear.value))
    counted = trail.broken[np.abs(linear.slopes) > 0]
    telling = (int((counted > 0).any(axis=(0, 1)).sum()), int((counted < 1).any(axis=(0, 1)).sum()))
    share = trusted_scatter(*telling)
    if not share or not 0 < value < 1:
        return score_interval(value, behaviors, behaviors, confidence)
    scatter = linear.scatter(None if seeds is None else seeds.mean)
    trials = 1 / (share * scatter.variance / (value * (1 - value)) + (1 - share) / behaviors)
    shrink = z_score(confidence) / student_quantile(0.5 + confidence / 2, freedom or scatter.freedom)
    return score_interval(value, trials * shrink**2, behaviors, confidence)


def front_difference(
    first: Trail, second: Trail, figure: FrontFigure, confidence: float = 0.95, seeds: Seeds | None = None
) -> Tested:
    """`second - first` of a figure of two fronts over the same seeds, behaviors and harmless prompts.

    The two intervals of `front_rate` are put together as in `crossed_rate_difference`, the test is Student's of the difference
    over its own variance by linearization. `seeds` as in `front_rate`.

    Returns:
        Nothing where one of the two does not reach so far; no limits and no p with fewer than two behaviors or harmless prompts.
    """
    one, two = _linear(first, figure), _linear(second, figure)
    if one is None or two is None:
        return Tested(NOTHING, None)
    value, behaviors = two.value - one.value, first.broken.shape[2]
    if first.smallest < 2:
        return Tested(Interval(value, None, None, behaviors), None)
    moved = _Linear(value, two.slopes, two.attacked - one.attacked, two.asked - one.asked)
    before, after = (each.scatter(None if seeds is None else seeds.mean).variance for each in (one, two))
    scatter = moved.scatter(None if seeds is None else seeds.difference)
    together = (before + after - scatter.variance) / (2 * math.sqrt(before * after)) if before and after else 0.0
    ends = [front_rate(trail, figure, confidence, seeds, freedom=scatter.freedom) for trail in (first, second)]
    interval = rate_difference(ends[0], ends[1], min(1.0, max(0.0, together)), behaviors)
    if not scatter.variance:
        # Nothing scatters: what two equal arms have in common is no evidence of a difference.
        return Tested(interval, None if value else 1.0)
    return Tested(interval, min(1.0, 2 * student_tail(abs(value) / math.sqrt(scatter.variance), scatter.freedom)))


@dataclass(frozen=True)
class _Linear:
    """A figure near the points that were measured: a constant, and the means of two tables.

    Attributes:
        value: of the figure.
        slopes: (K,), by the attack success of each checkpoint.
        attacked: (S, B), each seed's and behavior's outcomes with their weights.
        asked: (S, H), of harmless prompts.
    """

    value: float
    slopes: np.ndarray
    attacked: np.ndarray
    asked: np.ndarray

    def scatter(self, seeds: Scatter | None) -> Scatter:
        """Of the value; both tables have at least two columns."""
        return scatter_of(self.attacked, self.asked, seeds=seeds)


def _linear(trail: Trail, figure: FrontFigure) -> _Linear | None:
    if not trail.smallest:
        return None
    points = trail.points
    value = figure(points)
    if value is None:
        return None
    slopes = np.zeros_like(points)
    for place in np.ndindex(*points.shape):
        ends = []
        for sign in (1, -1):
            moved = points.copy()
            moved[place] += sign * _STEP
            there = figure(moved)
            # Where the front ends, from one side.
            ends += [(value, 0.0)] if there is None else [(there, sign * _STEP)]
        (up, above), (down, below) = ends
        slopes[place] = (up - down) / (above - below) if above != below else 0.0
    by_x, by_y = slopes.T
    # What rounding leaves of a slope of zero weighs nothing.
    by_x, by_y = (np.where(np.abs(one) < 1e-6, 0.0, one) for one in (by_x, by_y))
    return _Linear(value, by_y, np.tensordot(by_y, trail.broken, 1), np.tensordot(by_x, trail.refused, 1))
