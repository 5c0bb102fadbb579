"""Means over behaviors and seeds, and gaps between two sets of prompts, whose behaviors are the same or others.

A table has a row a training seed and a column a behavior. One seed: Student's interval over behaviors. Several: the scatter of
seeds and of behaviors together, as in `crossed`.

With |l| <= M the risks of one model under two laws of the prompt, q(x|y) and p(x|y), with the same law of y, differ by at most
2 M E TV(q(.|y), p(.|y)) (arXiv 2602.15238, theorem 3.1). `least_distance` reads that the other way: how far apart the laws
have to be at least for a gap of this size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dat_ray.measures.crossed import Scatter, crossed_mean_difference
from dat_ray.measures.intervals import NOTHING, Interval, student_mean, student_quantile

Table = Sequence[Mapping[str, float]]


def clipped(value: float, bound: float) -> float:
    """The value, or the end of [-bound, bound] that is nearer."""
    return min(bound, max(-bound, value))


def least_distance(gap: float, bound: float) -> float:
    """The least mean total variation, in [0, 1], that lets two risks of values in [-bound, bound] differ by `gap`."""
    return min(1.0, abs(gap) / (2 * bound))


def mean_over(table: Table, confidence: float = 0.95) -> Interval:
    """The mean of a table, for other seeds and other behaviors; of one seed, or of equal rows, for other behaviors."""
    if not table:
        return NOTHING
    first = table[0]
    if all(one == first for one in table):
        return student_mean([first[key] for key in sorted(first)], confidence)
    nothing = [dict.fromkeys(one, 0.0) for one in table]
    return crossed_mean_difference(nothing, table, confidence).interval


def gap_between(first: Table, second: Table, *, paired: bool, confidence: float = 0.95) -> Interval:
    """`second - first`.

    Args:
        first, second: of each seed, in the same order, behavior id to a mean.
        paired: whether both are of the same behaviors, so that each behavior's difference counts; where they are others, the
            two vary apart.
        confidence: two-sided.

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
        return crossed_mean_difference(first, second, confidence).interval
    return _unpaired(first[:1] if alike else first, second[:1] if alike else second, confidence)


def _unpaired(first: Table, second: Table, confidence: float) -> Interval:
    before, after = (_array(table) for table in (first, second))
    if not before.size or not after.size:
        return NOTHING
    value, n = float(after.mean() - before.mean()), min(before.shape[1], after.shape[1])
    if n < 2:
        return Interval(value, None, None, n)
    scatter = unlike_scatter(before, after)
    reach = student_quantile(0.5 + confidence / 2, scatter.freedom) * math.sqrt(scatter.variance)
    return Interval(value, value - reach, value + reach, n)


def unlike_scatter(first: np.ndarray, second: np.ndarray) -> Scatter:
    """The variance of the difference of two means over the same seeds and other behaviors.

    Both tables' behaviors vary apart and the seeds together: the variance of the seeds' differences, and those of both tables'
    behaviors, over the numbers of each, less what is left of both tables, which these three hold twice. With one seed it is
    Welch's, degrees of freedom included; with more they are Satterthwaite's, as in `scatter_of`.

    Args:
        first: [S, B] with at least two behaviors.
        second: [S, C] likewise.
    """
    behaviors = [_of_behaviors(table) for table in (first, second)]
    parts = list(behaviors)
    seeds = len(first)
    if seeds > 1:
        moved = second.mean(axis=1) - first.mean(axis=1)
        of_seeds = (float(moved.var(ddof=1)) / seeds, seeds - 1)
        rest = [_of_rest(table) for table in (first, second)]
        whole = of_seeds[0] + sum(one for one, _ in behaviors) - sum(one for one, _ in rest)
        # No component is negative: where the rest takes one away, the larger of the two sources is left.
        between = sum(one for one, _ in behaviors)
        if whole > max(of_seeds[0], between):
            return Scatter(whole, _freedom(whole, [of_seeds, *behaviors, *rest]))
        if of_seeds[0] > between:
            return Scatter(of_seeds[0], float(seeds - 1))
    variance = sum(one for one, _ in parts)
    return Scatter(variance, _freedom(variance, parts))


def _of_behaviors(table: np.ndarray) -> tuple[float, int]:
    """Variance of the mean over behaviors, each behavior averaged over seeds, and its degrees of freedom."""
    behaviors = table.shape[1]
    return float(table.mean(axis=0).var(ddof=1)) / behaviors, behaviors - 1


def _of_rest(table: np.ndarray) -> tuple[float, int]:
    """Variance of the mean that neither seeds nor behaviors account for, and its degrees of freedom."""
    seeds, behaviors = table.shape
    rest = table - table.mean(axis=1)[:, None] - table.mean(axis=0)[None, :] + table.mean()
    freedom = (seeds - 1) * (behaviors - 1)
    return float((rest**2).sum()) / freedom / (seeds * behaviors), freedom


def _freedom(variance: float, parts: Sequence[tuple[float, int]]) -> float:
    squares = sum(one**2 / freedom for one, freedom in parts)
    return max(1.0, variance**2 / squares) if squares else float(min(freedom for _, freedom in parts))


def _array(table: Table) -> np.ndarray:
    shared = sorted(set(table[0]).intersection(*table))
    return np.array([[float(one[key]) for key in shared] for one in table])
