"""Rates of several training seeds on the same behaviors, and differences of two such rates.

Each seed's model meets the same behaviors, so seeds and behaviors are crossed: a table with a row a seed and a column a
behavior. Its mean varies with both, and an interval that speaks of other seeds and other behaviors has to count both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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
from dat_ray.measures.significance import sign_flip

Table = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Scatter:
    """How far a mean over seeds and behaviors varies, or a sum of such means.

    Attributes:
        variance: of it.
        freedom: degrees of freedom of that estimate, which need not be whole.
    """

    variance: float
    freedom: float


@dataclass(frozen=True)
class Tested:
    """A difference of two means with its interval and its test.

    Attributes:
        interval: second minus first, with as many units as there are behaviors.
        p: two-sided, of no difference; None where it cannot be known.
    """

    interval: Interval
    p: float | None


@dataclass(frozen=True)
class Seeds:
    """How far seeds move the arms of a study.

    Attributes:
        mean: of one arm over its seeds.
        difference: of the means of two arms under the same seeds. Seeds that move all arms alike, by their first weights and
            the order of their rows, move no difference.
    """

    mean: Scatter
    difference: Scatter


def pooled_seeds(arms: Sequence[Table]) -> Seeds | None:
    """How far seeds move an arm, and the difference of two, from all arms of a study together: `seeds_from` their means.

    Args:
        arms: the table of each arm that was trained, over whatever behaviors its own seeds share.

    Returns:
        None unless all have the same number of seeds, at least 2.
    """
    tables = [table_of(outcomes) for outcomes in arms if any(outcomes)]
    return seeds_from([table.mean(axis=1) for table in tables if table.size])


def seeds_from(means: Sequence[np.ndarray]) -> Seeds | None:
    """How far seeds move an arm, and the difference of two, from the mean of every arm under every seed.

    Three seeds of one arm say little of how far seeds move it: by chance they often lie close together, and its difference from
    another arm then seems to vary with behaviors alone. At the levels that a correction for many tests asks for, that happens
    several times as often as such a test allows. So arms are taken to be moved alike far, and the table of A arms and S seeds is
    analysed by both (Scheffe 1959, The Analysis of Variance, chapter 4): what a seed does to all arms, MS_common with S - 1
    degrees of freedom, and what it does to each beyond that, MS_rest with (A - 1)(S - 1). A difference of two arms under the same
    seeds varies by 2 MS_rest / S, and an arm's mean by (MS_common + (A - 1) MS_rest) / (A S), which is the average of the arms'
    own variances; its degrees of freedom are Satterthwaite's, since what seeds have in common was seen S times and not A S times.

    Args:
        means: of each arm, [S].

    Returns:
        What behaviors add within a seed included; None unless all have the same S of at least 2.
    """
    counts = {len(one) for one in means}
    if len(counts) != 1 or counts == {1}:
        return None
    table = np.array(means)
    arms, seeds = table.shape
    moved = table - table.mean(axis=1, keepdims=True)
    common = moved.mean(axis=0)
    of_common = Scatter(float((common**2).sum()) / (seeds - 1) / seeds, seeds - 1.0)
    if arms == 1:
        return Seeds(of_common, Scatter(2 * of_common.variance, of_common.freedom))
    freedom = (arms - 1.0) * (seeds - 1.0)
    rest = float(((moved - common) ** 2).sum()) / freedom / seeds
    return Seeds(_summed([of_common, Scatter(rest * (arms - 1) / arms, freedom)]), Scatter(2 * rest, freedom))


def seeds_of(seeds: Seeds | None, *means: np.ndarray) -> Scatter | None:
    """What seeds add to the variance of the mean of a table [S, B], or of the difference of the means of two.

    A table whose rows are all equal, as that of the base model, which no seed moved, adds nothing.
    """
    if seeds is None:
        return None
    moved = sum(bool((table != table[:1]).any()) for table in means)
    return (Scatter(0.0, seeds.mean.freedom), seeds.mean, seeds.difference)[moved]


def scatter_of(*tables: np.ndarray, seeds: Scatter | None = None) -> Scatter:
    """The variance of the sum of the means of tables over the same S seeds, each on B behaviors of its own, at least 2.

    Seeds move all tables together, and behaviors each its own. So it is the variance of the seeds' sums over S, and that of each
    table's behaviors over B, less the rest of each table over S B, which the others hold twice. Of one table this is
    (MS_seeds + MS_behaviors - MS_rest) / (S B), the mean squares of a two-way analysis of variance (Cornfield and Tukey 1956,
    Ann. Math. Stat. 27:907). With one seed behaviors alone vary; of two tables that is Welch's variance. Degrees of freedom are
    Satterthwaite's (1946, Biometrics Bulletin 2:110).

    Args:
        tables: each [S, B].
        seeds: what seeds add, where more is known of it than these tables tell: see `pooled_seeds`.
    """
    of_behaviors = [Scatter(float(table.mean(axis=0).var(ddof=1)) / table.shape[1], table.shape[1] - 1.0) for table in tables]
    behaviors = _summed(of_behaviors)
    count = len(tables[0])
    if count == 1:
        return behaviors
    if seeds is None:
        by_seed = np.sum([table.mean(axis=1) for table in tables], axis=0)
        seeds = Scatter(float(by_seed.var(ddof=1)) / count, count - 1.0)
    of_rest = [_rest_of(table) for table in tables]
    both = seeds.variance + behaviors.variance - sum(one.variance for one in of_rest)
    # A component of variance is not negative, whatever its estimate: where one would be, the larger of the two sources is left.
    larger = max(seeds, behaviors, key=lambda one: (one.variance, one.freedom))
    return Scatter(both, _freedom(both, [seeds, *of_behaviors, *of_rest])) if both > larger.variance else larger


def _rest_of(table: np.ndarray) -> Scatter:
    """Of the mean, what neither seeds nor behaviors account for."""
    seeds, behaviors = table.shape
    rest = table - table.mean(axis=1)[:, None] - table.mean(axis=0)[None, :] + table.mean()
    freedom = float((seeds - 1) * (behaviors - 1))
    return Scatter(float((rest**2).sum()) / freedom / table.size, freedom)


def _summed(parts: Sequence[Scatter]) -> Scatter:
    """Of independent sources."""
    if len(parts) == 1:
        return parts[0]
    variance = sum(one.variance for one in parts)
    return Scatter(variance, _freedom(variance, parts))


def _freedom(variance: float, parts: Sequence[Scatter]) -> float:
    squares = sum(one.variance**2 / one.freedom for one in parts)
    return max(1.0, variance**2 / squares) if squares else min(one.freedom for one in parts)


def crossed_rate(
    outcomes: Table, confidence: float = 0.95, seeds: Seeds | None = None, *, freedom: float | None = None
) -> Interval:
    """A rate over training seeds and behaviors, or a mean of shares, with an interval for other seeds and other behaviors.

    The variance of `scatter_of` is turned into trials of Wilson's interval, as in `wilson_pooled`.

    Args:
        outcomes: of each seed, behavior id to whether it was broken, or to a share from 0 to 1; behaviors that all seeds have are
            used.
        confidence: two-sided.
        seeds: of `pooled_seeds`; None: as these outcomes tell.
        freedom: degrees of freedom of the limits, where they are to be a part of another figure's; None: of the variance.

    Returns:
        The rate, with `n` behaviors; no limits with fewer than two seeds or behaviors.
    """
    table = table_of(outcomes)
    if not table.size:
        return NOTHING
    behaviors = table.shape[1]
    mean, by_behavior = float(table.mean()), table.mean(axis=0)
    if min(table.shape) < 2:
        return Interval(mean, None, None, behaviors)
    share = trusted_scatter(int((by_behavior > 0).sum()), int((by_behavior < 1).sum()))
    if not share:
        return score_interval(mean, behaviors, behaviors, confidence)
    found = scatter_of(table, seeds=seeds_of(seeds, table))
    seen = found.variance / (mean * (1 - mean))
    trials = 1 / (share * seen + (1 - share) / behaviors)
    shrink = z_score(confidence) / student_quantile(0.5 + confidence / 2, freedom or found.freedom)
    return score_interval(mean, trials * shrink**2, behaviors, confidence)


def crossed_rate_difference(
    first: Sequence[Mapping[str, bool]],
    second: Sequence[Mapping[str, bool]],
    confidence: float = 0.95,
    seeds: Seeds | None = None,
) -> Tested:
    """`second - first` of two rates over the same seeds and behaviors, for other seeds and other behaviors.

    The two intervals of `crossed_rate`, with the degrees of freedom of the difference, are put together as Newcombe puts together
    Wilson's (see `paired_rate_difference`; Zou and Donner 2008, Stat. Med. 27:1693), with the correlation of the two means that
    the scatter of their difference tells: an interval of some width even where every behavior moves the same way in every seed.
    The test is Student's, of the mean
    difference over `scatter_of` its table.

    Args:
        first, second: of each seed, in the same order, behavior id to whether it was broken; behaviors that all have are used.
        confidence: two-sided.
        seeds: of `pooled_seeds`; None: as these outcomes tell.

    Returns:
        No limits and no p with fewer than two seeds or behaviors.
    """
    shared, before, after, found = _compared(first, second, seeds)
    if found.interval.value is None or min(before.shape) < 2:
        return found
    freedom = scatter_of(after - before, seeds=seeds_of(seeds, before, after)).freedom
    one, two = (crossed_rate(_within(outcomes, shared), confidence, seeds, freedom=freedom) for outcomes in (first, second))
    return Tested(rate_difference(one, two, _correlation(before, after, seeds), len(shared)), found.p)


def crossed_mean_difference(first: Table, second: Table, confidence: float = 0.95, seeds: Seeds | None = None) -> Tested:
    """`second - first` of two means over the same seeds and behaviors, with Student's interval over `scatter_of` the difference.

    Args:
        first, second: of each seed, in the same order, behavior id to a value; behaviors that all have are used.
        confidence: two-sided.
        seeds: of `pooled_seeds`; None: as these values tell.

    Returns:
        No limits and no p with fewer than two seeds or behaviors, and no limits where every behavior moves alike in every seed,
        which says nothing of chance.
    """
    shared, before, after, found = _compared(first, second, seeds)
    if found.interval.value is None or min(before.shape) < 2:
        return found
    scatter = scatter_of(after - before, seeds=seeds_of(seeds, before, after))
    if not scatter.variance and found.interval.value:
        return found
    reach = student_quantile(0.5 + confidence / 2, scatter.freedom) * math.sqrt(scatter.variance)
    value = found.interval.value
    return Tested(Interval(value, value - reach, value + reach, len(shared)), found.p)


def _compared(first: Table, second: Table, seeds: Seeds | None) -> tuple[list[str], np.ndarray, np.ndarray, Tested]:
    """The behaviors that all have, both tables over them, and their mean difference with its test."""
    shared = _shared([*first, *second])
    before, after = _table(first, shared), _table(second, shared)
    return shared, before, after, _tested(before, after, shared, seeds)


def _tested(before: np.ndarray, after: np.ndarray, shared: Sequence[str], seeds: Seeds | None) -> Tested:
    """The mean difference without limits, and the p of Student's test."""
    if not before.size:
        return Tested(NOTHING, None)
    moved = after - before
    value = float(moved.mean())
    plain = Interval(value, None, None, len(shared))
    if min(moved.shape) < 2:
        return Tested(plain, None)
    scatter = scatter_of(moved, seeds=seeds_of(seeds, before, after))
    if scatter.variance > 0:
        return Tested(plain, min(1.0, 2 * student_tail(abs(value) / math.sqrt(scatter.variance), scatter.freedom)))
    # Nothing scatters: what is left of chance is the signs of the behaviors' moves.
    by_behavior = dict(zip(shared, moved.mean(axis=0), strict=True))
    return Tested(plain, sign_flip(dict.fromkeys(shared, 0.0), by_behavior))


def _correlation(before: np.ndarray, after: np.ndarray, seeds: Seeds | None) -> float:
    """Of the two means: what the variance of their difference lacks of the sum of theirs; 0 where one does not vary."""
    first, second = (scatter_of(table, seeds=seeds_of(seeds, table)).variance for table in (before, after))
    moved = scatter_of(after - before, seeds=seeds_of(seeds, before, after)).variance
    if not first or not second:
        return 0.0
    return min(1.0, max(0.0, (first + second - moved) / (2 * math.sqrt(first * second))))


def _shared(outcomes: Table) -> list[str]:
    """Behaviors that all have, in order."""
    if not outcomes:
        return []
    first, *others = outcomes
    return sorted(set(first).intersection(*others))


def table_of(outcomes: Table) -> np.ndarray:
    """[S, B], over the behaviors that all seeds have."""
    return _table(outcomes, _shared(outcomes))


def _table(outcomes: Table, shared: Sequence[str]) -> np.ndarray:
    return np.array([[float(one[key]) for key in shared] for one in outcomes])


def _within(outcomes: Sequence[Mapping[str, bool]], shared: Sequence[str]) -> list[dict[str, bool]]:
    return [{key: one[key] for key in shared} for one in outcomes]
