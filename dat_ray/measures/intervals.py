"""Intervals for rates and means where the independent unit is a behavior, not an attempt.

Attempts of one behavior share its goal and fail together, so a rate pooled over attempts counts for as many trials as its
behaviors are worth, and a mean is resampled by behavior; a behavior that is broken or not counts once. Rates take score
intervals, which have a width at 0 and 1 too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

# Figures of benchmarks that are shares of right answers: their interval is Wilson's.
SHARES = ("acc", "acc_norm", "exact_match")


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; all three are None where nothing was measured, the limits where they cannot be known.

    Attributes:
        value: the estimate.
        low: lower limit at the confidence that was asked for.
        high: upper limit.
        n: independent units (behaviors) behind it.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


NOTHING = Interval(None, None, None, 0)


def z_score(confidence: float) -> float:
    """Two-sided standard normal quantile, 1.96 at 0.95."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a rate of independent trials (Wilson 1927, JASA 22:209).

    Unlike the Wald interval it has a width at 0 of n and n of n, and covers near its nominal rate at n = 20.

    Raises:
        ValueError: `successes` is not in 0..n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes {successes} must lie in 0..{n}")
    if n == 0:
        return NOTHING
    return score_interval(successes / n, n, n, confidence)


def wilson_pooled(groups: Mapping[str, Sequence[float]], confidence: float = 0.95) -> Interval:
    """Wilson's interval of a rate pooled over attempts, of which those of one behavior belong together.

    The number of trials is the one at which a rate would vary as much as this one does between behaviors (Kish 1965, Survey
    Sampling, 8.2; Korn and Graubard 1998, Survey Methodology 24:193). How much attempts of one behavior go together can be
    read only off behaviors that differ from the rest: with few of them, or none as at 0 of 400, each behavior counts as one
    trial, its attempts as repetitions (see `_trials`).

    Args:
        groups: behavior id to its values in [0, 1], 0 or 1 for an attempt; behaviors without values are left out.
        confidence: two-sided.

    Returns:
        The mean over all values (behaviors weigh by their number of values), with `n` behaviors.
    """
    filled = [groups[key] for key in sorted(groups) if len(groups[key])]
    if not filled:
        return NOTHING
    sums, counts = [math.fsum(values) for values in filled], [len(values) for values in filled]
    total = sum(counts)
    # More trials than attempts would need behaviors that agree by design.
    return score_interval(math.fsum(sums) / total, min(total, _trials(sums, counts)), len(filled), confidence)


def wilson_mean(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Wilson's interval for the mean of independent values in [0, 1], such as each behavior's chance of being broken.

    Trials are counted as in `wilson_pooled`. For values of 0 and 1 this is `wilson`.
    """
    if not values:
        return NOTHING
    mean = min(1.0, max(0.0, math.fsum(values) / len(values)))
    return score_interval(mean, _trials(values, [1] * len(values)), len(values), confidence)


# As many behaviors whose attempts all go together are added to those that were seen to tell how far attempts do.
ENTIRE_BEHAVIORS = 4


def trusted_scatter(any_harmful: int, any_harmless: int) -> float:
    """How far, from 0 to 1, the scatter between behaviors is relied on: not at all where all of them are alike."""
    telling = min(any_harmful, any_harmless)
    return telling / (telling + ENTIRE_BEHAVIORS)


def _trials(sums: Sequence[float], counts: Sequence[int]) -> float:
    """Independent trials that behaviors with these sums of `counts` values are worth.

    Between one trial a behavior (fewer, where some have more attempts than others) and what their scatter says.
    """
    total = sum(counts)
    rate = math.fsum(sums) / total
    together = math.fsum(count * count for count in counts) / total**2
    share = trusted_scatter(sum(one > 0 for one in sums), sum(one < count for one, count in zip(sums, counts, strict=True)))
    if len(sums) == 1 or not share or not 0 < rate < 1:
        return 1 / together
    scatter = math.fsum((one - rate * count) ** 2 for one, count in zip(sums, counts, strict=True)) / total**2
    return 1 / (share * scatter / (rate * (1 - rate)) + (1 - share) * together)


def score_interval(rate: float, trials: float, n: int, confidence: float) -> Interval:
    """Wilson's limits of a rate over `trials`, which need not be whole, with `n` units behind it."""
    z = z_score(confidence)
    center = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    low = 0.0 if rate == 0.0 else max(0.0, center - half)
    high = 1.0 if rate == 1.0 else min(1.0, center + half)
    return Interval(rate, low, high, n)


def student_mean(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's interval for a mean, as of one figure over a few seeds; no limits with fewer than two values."""
    n = len(values)
    if n < 2:
        return Interval(values[0], None, None, 1) if values else NOTHING
    mean = math.fsum(values) / n
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    reach = student_quantile(0.5 + confidence / 2, n - 1) * error
    return Interval(mean, mean - reach, mean + reach, n)


@functools.lru_cache(maxsize=256)
def student_quantile(probability: float, freedom: float) -> float:
    """The t below which a share `probability` > 1/2 of Student's distribution lies, to six digits."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    # With t = sqrt(freedom) tan(angle) the density becomes scale * cos(angle)^(freedom - 1) on a finite range.
    angles = np.linspace(0.0, math.pi / 2, 200_001)
    heights = scale * np.cos(angles) ** (freedom - 1)
    below = 0.5 + np.concatenate([[0.0], np.cumsum((heights[1:] + heights[:-1]) / 2)]) * (angles[1] - angles[0])
    return math.sqrt(freedom) * math.tan(float(np.interp(probability, below, angles)))


def student_tail(t: float, freedom: float) -> float:
    """The share of Student's distribution above `t` >= 0, to six digits."""
    # As in `student_quantile`: the density of the angle, from the one of `t` to a quarter turn.
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    angles = np.linspace(math.atan(t / math.sqrt(freedom)), math.pi / 2, 20_001)
    heights = scale * np.cos(angles) ** (freedom - 1)
    return float(np.trapezoid(heights, angles))


def cluster_bootstrap(
    groups: Mapping[str, Sequence[float]], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Expanded percentile bootstrap of a pooled mean, resampling whole behaviors; of a rate, see `wilson_pooled`.

    Plain percentiles are too narrow by a factor of sqrt((n - 1) / n) and by a normal quantile in place of Student's; the
    percentiles are moved out by as much (Hesterberg 2015, Am. Stat. 69:371, section 5).

    Args:
        groups: behavior id to its values; behaviors without values are left out.
        confidence: two-sided.
        resamples: bootstrap draws of as many behaviors as there are.
        seed: of the draws; the result does not depend on the order of `groups`.

    Returns:
        The mean over all values (behaviors weigh by their number of values), with `n` behaviors; no limits with fewer than
        two, of which nothing is known about how behaviors differ.
    """
    filled = [groups[key] for key in sorted(groups) if len(groups[key])]
    if not filled:
        return NOTHING
    if len(filled) == 1:
        return Interval(math.fsum(filled[0]) / len(filled[0]), None, None, 1)
    sums = np.array([math.fsum(values) for values in filled])
    counts = np.array([len(values) for values in filled], dtype=np.float64)
    # Drawing how often each behavior is picked equals drawing behaviors with replacement.
    picks = np.random.default_rng(seed).multinomial(len(filled), np.full(len(filled), 1 / len(filled)), size=resamples)
    means = (picks @ sums) / (picks @ counts)
    return Interval(float(sums.sum() / counts.sum()), *expanded_percentiles(means, confidence, len(filled)), len(filled))


def paired_mean_difference(
    first: Mapping[str, float],
    second: Mapping[str, float],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """`second - first`, averaged over the behaviors that both have, with a bootstrap interval over behaviors."""
    shared = sorted(first.keys() & second.keys())
    return cluster_bootstrap(
        {key: [second[key] - first[key]] for key in shared}, confidence=confidence, resamples=resamples, seed=seed
    )


def paired_rate_difference(first: Mapping[str, bool], second: Mapping[str, bool], *, confidence: float = 0.95) -> Interval:
    """`second - first` of two yes-or-no outcomes of the same behaviors, with Newcombe's paired score interval.

    A bootstrap has zero width when every behavior moves the same way, which a small suite often does; the
    interval built from two Wilson intervals and their correlation does not (Newcombe 1998, Stat. Med. 17:2635,
    method 10 with the continuity-corrected correlation).
    """
    shared = sorted(first.keys() & second.keys())
    n = len(shared)
    if n == 0:
        return NOTHING
    both = sum(first[key] and second[key] for key in shared)
    only_first = sum(first[key] and not second[key] for key in shared)
    only_second = sum(second[key] and not first[key] for key in shared)
    neither = n - both - only_first - only_second
    one = wilson(both + only_first, n, confidence)
    two = wilson(both + only_second, n, confidence)
    return rate_difference(one, two, _paired_correlation(both, only_first, only_second, neither), n)


def rate_difference(one: Interval, two: Interval, correlation: float, n: int) -> Interval:
    """`two - one` of two rates from their own intervals and the correlation of the two (Newcombe 1998, method 10).

    Args:
        one, two: both measured, with limits.
        correlation: of the two estimates.
        n: independent units behind the difference.
    """
    assert one.value is not None
    assert one.low is not None
    assert one.high is not None
    assert two.value is not None
    assert two.low is not None
    assert two.high is not None
    down_two, up_two = two.value - two.low, two.high - two.value
    down_one, up_one = one.value - one.low, one.high - one.value
    difference = two.value - one.value
    # The lower limit moves `second` down and `first` up, the upper limit the other way round.
    low = difference - math.sqrt(max(0.0, down_two**2 - 2 * correlation * down_two * up_one + up_one**2))
    high = difference + math.sqrt(max(0.0, up_two**2 - 2 * correlation * up_two * down_one + down_one**2))
    return Interval(difference, max(-1.0, low), min(1.0, high), n)


def _paired_correlation(a: int, b: int, c: int, d: int) -> float:
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    if margins == 0:
        return 0.0
    product = float(a * d - b * c)
    if product > 0:
        product = max(product - (a + b + c + d) / 2, 0.0)
    return product / math.sqrt(margins)


def expanded_percentiles(draws: np.ndarray, confidence: float, n: int) -> tuple[float, float]:
    """Limits of a statistic from its values over resamples of n units, at least two; see `cluster_bootstrap`."""
    return _percentiles(draws, _expanded(confidence, n))


def _expanded(confidence: float, n: int) -> float:
    """The confidence at which percentiles of n resampled units, at least two, cover with `confidence`."""
    reach = math.sqrt(n / (n - 1)) * student_quantile(0.5 + confidence / 2, n - 1)
    return 2 * NormalDist().cdf(reach) - 1


def _percentiles(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
