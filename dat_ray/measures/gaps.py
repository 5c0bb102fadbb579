"""Means over behaviors and seeds, and gaps between two sets of prompts, whose behaviors are the same or others.

A table has a row a training seed and a column a behavior. One seed: Student's interval over behaviors. Several: the scatter of
seeds and of behaviors together, as in `crossed`.

With |l| <= M the risks of one model under two laws of the prompt, q(x|y) and p(x|y), with the same law of y, differ by at most
2 M E TV(q(.|y), p(.|y)) (arXiv 2602.15238, theorem 3.1). `least_distance` reads that the other way: how far apart the laws
have to be at least for a gap of this size.
"""

from __future__ import annotations

import math

from dat_ray.measures.crossed import Table, crossed_mean_difference, scatter_of, table_of
from dat_ray.measures.intervals import NOTHING, Interval, student_mean, student_quantile


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
    before, after = table_of(first), table_of(second)
    if not before.size or not after.size:
        return NOTHING
    value, n = float(after.mean() - before.mean()), min(before.shape[1], after.shape[1])
    if n < 2:
        return Interval(value, None, None, n)
    scatter = scatter_of(-before, after)
    reach = student_quantile(0.5 + confidence / 2, scatter.freedom) * math.sqrt(scatter.variance)
    return Interval(value, value - reach, value + reach, n)
