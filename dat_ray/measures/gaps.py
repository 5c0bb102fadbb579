"""Means over behaviors and seeds, and gaps between two sets of prompts, whose behaviors are the same or others.

A table has a row a training seed and a column a behavior. One seed: Student's interval over behaviors. Several: the scatter of
seeds and of behaviors together, as in `crossed`, with what seeds add from all arms of a study (`crossed.seeds_from`).

With |l| <= M the risks of one model under two laws of the prompt, q(x|y) and p(x|y), with the same law of y, differ by at most
2 M E TV(q(.|y), p(.|y)) (arXiv 2602.15238, theorem 3.1). `least_distance` reads that the other way: how far apart the laws
have to be at least for a gap of this size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from dat_ray.measures.crossed import Scatter, Seeds, Table, scatter_of, seeds_from, table_of
from dat_ray.measures.intervals import NOTHING, Interval, student_mean, student_quantile


def clipped(value: float, bound: float) -> float:
    """The value, or the end of [-bound, bound] that is nearer."""
    return min(bound, max(-bound, value))


def least_distance(gap: float, bound: float) -> float:
    """The least mean total variation, in [0, 1], that lets two risks of values in [-bound, bound] differ by `gap`."""
    return min(1.0, abs(gap) / (2 * bound))


def gap_seeds(gaps: Iterable[tuple[Table, Table]], *, paired: bool) -> Seeds | None:
    """How far seeds move the gap of an arm, and the difference of the gaps of two: `seeds_from` all trained arms.

    Args:
        gaps: `first` and `second` of `gap_between`, of each arm.
        paired: as there.
    """
    means = []
    for first, second in gaps:
        if paired:
            moved = table_of(_moved(first, second))
            means += [moved.mean(axis=1)] if moved.size else []
        else:
            before, after = table_of(first), table_of(second)
            means += [after.mean(axis=1) - before.mean(axis=1)] if before.size and after.size else []
    return seeds_from(means)


def mean_over(table: Table, confidence: float = 0.95, seeds: Scatter | None = None) -> Interval:
    """The mean of a table, for other seeds and other behaviors; of one seed, or of equal rows, for other behaviors.

    Args:
        table: of each seed, behavior id to a value; behaviors that all seeds have are used.
        confidence: two-sided.
        seeds: what seeds add to the variance of the mean; None: as this table tells.

    Returns:
        No limits with fewer than two behaviors, and none where every behavior has one value in every seed, which says nothing of
        chance.
    """
    if not table:
        return NOTHING
    first = table[0]
    if all(one == first for one in table):
        return student_mean([first[key] for key in sorted(first)], confidence)
    return _interval(table_of(table), confidence=confidence, seeds=seeds)


def gap_between(first: Table, second: Table, *, paired: bool, confidence: float = 0.95, seeds: Scatter | None = None) -> Interval:
    """`second - first`.

    Args:
        first, second: of each seed, in the same order, behavior id to a mean.
        paired: whether both are of the same behaviors, so that each behavior's difference counts; where they are others, the
            two vary apart.
        confidence: two-sided.
        seeds: what seeds add to the variance of the gap; None: as these tables tell.

    Returns:
        With as many units as the smaller set has behaviors; no limits where they cannot be known.
    """
    if not first or not second:
        return NOTHING
    alike = all(one == first[0] for one in first) and all(one == second[0] for one in second)
    if paired and alike:
        shared = sorted(first[0].keys() & second[0].keys())
        return student_mean([second[0][key] - first[0][key] for key in shared], confidence)
    if paired:
        return _interval(table_of(_moved(first, second)), confidence=confidence, seeds=seeds)
    before, after = (table_of(one[:1] if alike else one) for one in (first, second))
    return _interval(-before, after, confidence=confidence, seeds=None if alike else seeds)


def _moved(first: Table, second: Table) -> Table:
    """`second - first` of each seed's behaviors."""
    pairs = zip(first, second, strict=True)
    return [{key: after[key] - before[key] for key in before.keys() & after.keys()} for before, after in pairs]


def _interval(*tables: np.ndarray, confidence: float, seeds: Scatter | None) -> Interval:
    """Student's, of the sum of the means of tables [S, B]."""
    if not all(table.size for table in tables):
        return NOTHING
    value, n = float(sum(table.mean() for table in tables)), min(table.shape[1] for table in tables)
    if n < 2:
        return Interval(value, None, None, n)
    scatter = scatter_of(*tables, seeds=seeds)
    if not scatter.variance and value:
        return Interval(value, None, None, n)
    reach = student_quantile(0.5 + confidence / 2, scatter.freedom) * math.sqrt(scatter.variance)
    return Interval(value, value - reach, value + reach, n)
