"""Means and gaps of risks against values by hand, and against the variance that is put in."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dat_ray.measures.crossed import Scatter, crossed_mean_difference, pooled_seeds, scatter_of, seeds_from
from dat_ray.measures.gaps import clipped, gap_between, gap_seeds, least_distance, mean_over
from dat_ray.measures.intervals import NOTHING


def row(*values: float, names: str = "b") -> dict[str, float]:
    return {f"{names}{at}": value for at, value in enumerate(values)}


def test_values_stay_within_the_bound_on_both_sides() -> None:
    assert [clipped(value, 2.0) for value in (-5.0, -2.0, -1.5, 0.0, 7.0)] == [-2.0, -2.0, -1.5, 0.0, 2.0]


def test_a_gap_of_the_whole_range_needs_laws_that_share_nothing() -> None:
    assert least_distance(-20.0, 10.0) == 1.0
    assert least_distance(1.0, 10.0) == pytest.approx(0.05)
    assert least_distance(0.0, 10.0) == 0.0
    assert least_distance(100.0, 10.0) == 1.0


def test_one_seed_has_students_interval() -> None:
    found = mean_over([row(1, 2, 3, 4)])
    # t(3) is 3.182446; the standard deviation is sqrt(5/3).
    reach = 3.182446 * math.sqrt(5 / 3 / 4)
    assert (found.value, found.n) == (2.5, 4)
    assert (found.low, found.high) == pytest.approx((2.5 - reach, 2.5 + reach), abs=1e-4)
    # A model that is the same under every seed is no more certain for it.
    assert mean_over([row(1, 2, 3, 4)] * 3) == found
    assert mean_over([]) == NOTHING
    assert mean_over([{}]) == NOTHING
    assert mean_over([row(1)]).low is None


def test_the_same_behaviors_are_paired_and_others_have_welchs_interval() -> None:
    # All move by 1: no chance is left where they are paired.
    paired = gap_between([row(0, 5, 9)], [row(1, 6, 10)], paired=True)
    assert (paired.value, paired.low, paired.high) == (1.0, 1.0, 1.0)
    # Two of equal variance 2: freedom 2, t 4.302653, standard error sqrt(2).
    found = gap_between([row(0, 2)], [row(5, 7, names="c")], paired=False)
    reach = 4.302653 * math.sqrt(2)
    assert (found.value, found.n) == (5.0, 2)
    assert (found.low, found.high) == pytest.approx((5 - reach, 5 + reach), abs=1e-3)
    # Three of variance 1 and three of variance 1: freedom 4, t 2.776445, standard error sqrt(2/3).
    found = gap_between([row(0, 1, 2)], [row(4, 5, 6)], paired=False)
    assert found.high == pytest.approx(4 + 2.776445 * math.sqrt(2 / 3), abs=1e-4)


def test_paired_counts_the_behaviors_that_both_have() -> None:
    found = gap_between([row(0, 1, 2)], [{"b1": 3.0, "b2": 5.0, "x": 99.0}], paired=True)
    assert (found.value, found.n) == (2.5, 2)
    seeds = [row(0, 1, 2), row(1, 0, 3)], [row(2, 2, 2), row(3, 1, 5)]
    assert gap_between(*seeds, paired=True) == crossed_mean_difference(*seeds).interval


def test_what_seeds_add_may_come_from_other_arms() -> None:
    rng = np.random.default_rng(3)
    arms = [([row(*one) for one in rng.random((3, 9))], [row(*one) for one in rng.random((3, 9))]) for _ in range(4)]
    # A gap of the same behaviors is the mean of their differences.
    moved = [[{key: new[key] - old[key] for key in old} for old, new in zip(*arm, strict=True)] for arm in arms]
    paired = gap_seeds(arms, paired=True)
    assert paired is not None
    assert paired == pooled_seeds(moved)
    own = gap_between(*arms[0], paired=True, seeds=paired.mean)
    assert own == mean_over(moved[0], seeds=paired.mean)
    assert own != gap_between(*arms[0], paired=True)
    # Of others the two means vary apart.
    by_seed = [np.array([[*one.values()] for one in table]).mean(1) for arm in arms for table in arm]
    assert gap_seeds(arms, paired=False) == seeds_from([new - old for old, new in zip(by_seed[::2], by_seed[1::2], strict=True)])
    wide = gap_between(*arms[0], paired=False, seeds=Scatter(1.0, 2.0))
    assert wide.value is not None
    assert wide.high is not None
    assert wide.high - wide.value > 4
    assert gap_seeds([], paired=True) is None


def test_what_cannot_be_known_has_no_limits() -> None:
    assert gap_between([], [row(1, 2)], paired=False) == NOTHING
    assert gap_between([row(1, 2)], [{}], paired=False) == NOTHING
    alone = gap_between([row(1)], [row(3, 5)], paired=False)
    assert (alone.value, alone.low, alone.high) == (3.0, None, None)


def test_the_scatter_of_two_tables_by_hand() -> None:
    # Seeds differ by 5 and 4: variance 1/2, halved. Behaviors: 2/2 each. Nothing is left over.
    found = scatter_of(-np.array([[0.0, 2.0], [1.0, 3.0]]), np.array([[5.0, 7.0], [5.0, 7.0]]))
    assert found.variance == pytest.approx(2.25)
    assert found.freedom == pytest.approx(2.25**2 / (0.25**2 + 1 + 1))
    # One row is Welch's.
    assert scatter_of(-np.array([[0.0, 2.0]]), np.array([[5.0, 7.0]])).freedom == pytest.approx(2.0)


def tables(rng: np.random.Generator, behaviors: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Three seeds, which move both sets, the second twice as far; each behavior's own level; and noise."""
    seeds = rng.normal(0, 0.5, 3)
    first, second = (
        factor * seeds[:, None] + rng.normal(0, 1.0, count)[None, :] + rng.normal(0, 0.8, (3, count))
        for factor, count in zip((1.0, 2.0), behaviors, strict=True)
    )
    return first, second


def test_the_variance_is_what_was_put_in() -> None:
    rng, behaviors = np.random.default_rng(3), (6, 9)
    drawn = [tables(rng, behaviors) for _ in range(2000)]
    # The seeds' difference has the standard deviation 0.5.
    true = 0.5**2 / 3 + sum(1.0 / count + 0.8**2 / (3 * count) for count in behaviors)
    seen = np.var([second.mean() - first.mean() for first, second in drawn])
    assert seen == pytest.approx(true, rel=0.1)
    # A little more where a component would be negative.
    assert np.mean([scatter_of(-first, second).variance for first, second in drawn]) == pytest.approx(true, rel=0.1)


def test_the_interval_of_other_behaviors_and_seeds_holds_its_level() -> None:
    rng, inside = np.random.default_rng(4), 0
    for _ in range(100):
        first, second = tables(rng, (8, 10))
        found = gap_between([row(*one) for one in first], [row(*one, names="c") for one in second], paired=False)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 0.0 <= found.high
    # Four standard errors below 0.95; above it, few degrees of freedom of the seeds are cautious.
    assert inside / 100 >= 0.95 - 4 * 0.0218
