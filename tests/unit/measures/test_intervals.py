from __future__ import annotations

import math
import random

import pytest

from dat_ray.measures.intervals import (
    NOTHING,
    cluster_bootstrap,
    paired_mean_difference,
    paired_rate_difference,
    wilson,
    z_score,
)
from tests.unit.measures.limits import covers, limits


def binomial(n: int, k: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def test_z_score_of_the_usual_levels() -> None:
    assert z_score(0.95) == pytest.approx(1.959963985)
    assert z_score(0.90) == pytest.approx(1.644853627)


def test_wilson_by_hand() -> None:
    # z^2 = 3.8414588; 5 of 10: center (0.5 + 0.19207) / 1.38415 = 0.5, half 1.95996/1.38415 * sqrt(0.025 + 0.0096036)
    assert wilson(5, 10).low == pytest.approx(0.2365931, abs=1e-6)
    assert wilson(5, 10).high == pytest.approx(0.7634069, abs=1e-6)
    # 0 of n: the upper limit is z^2 / (n + z^2)
    none = wilson(0, 20)
    assert (none.value, none.low, none.n) == (0.0, 0.0, 20)
    assert none.high == pytest.approx(3.8414588 / 23.8414588, abs=1e-7)
    every = wilson(20, 20)
    assert (every.value, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(20 / 23.8414588, abs=1e-7)


def test_wilson_of_nothing_and_of_the_impossible() -> None:
    assert wilson(0, 0) == NOTHING
    with pytest.raises(ValueError, match=r"0\.\.3"):
        wilson(4, 3)


def test_wilson_narrows_with_less_confidence() -> None:
    wide, narrow = wilson(7, 30, 0.95), wilson(7, 30, 0.80)
    (lowest, highest), (low, high) = limits(wide), limits(narrow)
    assert lowest < low < 7 / 30 < high < highest
    assert wide.value == narrow.value == 7 / 30


def exact_coverage(n: int, p: float) -> float:
    covered = [k for k in range(n + 1) if covers(wilson(k, n), p)]
    return sum(binomial(n, k, p) for k in covered)


@pytest.mark.parametrize("n", [48, 50, 53])
@pytest.mark.parametrize("p", [0.2, 0.35, 0.5, 0.65])
def test_wilson_covers_near_its_nominal_rate(n: int, p: float) -> None:
    assert 0.93 <= exact_coverage(n, p) <= 0.97


def test_wilson_coverage_by_simulation() -> None:
    rng = random.Random(7)
    for p in (0.2, 0.4, 0.7):
        hits = 0
        for _ in range(4000):
            interval = wilson(sum(rng.random() < p for _ in range(50)), 50)
            hits += covers(interval, p)
        assert 0.93 <= hits / 4000 <= 0.97


def test_bootstrap_of_one_behavior_claims_no_interval() -> None:
    only = cluster_bootstrap({"a": [1.0, 0.0, 0.0, 1.0]})
    assert (only.value, only.low, only.high, only.n) == (0.5, None, None, 1)


def test_bootstrap_of_two_behaviors_by_hand() -> None:
    # Draws: both a (1/4), both b (1/4), one of each (1/2): means 0, 1, 1/2; 2.5% and 97.5% are the extremes.
    two = cluster_bootstrap({"a": [0.0, 0.0], "b": [1.0, 1.0]}, resamples=4000)
    assert (two.value, two.low, two.high, two.n) == (0.5, 0.0, 1.0, 2)


def test_bootstrap_pools_by_attempt_and_resamples_by_behavior() -> None:
    # One behavior with 8 values and one with 2: pooled mean 8/10, not the mean of the two means.
    uneven = cluster_bootstrap({"a": [1.0] * 8, "b": [0.0] * 2})
    assert uneven.value == pytest.approx(0.8)
    # The same 40 values as 40 behaviors are four times the information of 10 behaviors of 4 equal ones.
    low, high = limits(cluster_bootstrap({str(i): [float(i % 2)] * 4 for i in range(10)}))
    low_of_40, high_of_40 = limits(cluster_bootstrap({str(i): [float(i % 2)] for i in range(40)}))
    assert high - low > 1.6 * (high_of_40 - low_of_40)


def test_bootstrap_is_seeded_and_ignores_order_and_empty_behaviors() -> None:
    groups = {str(i): [math.sin(i), math.cos(3 * i)] for i in range(12)}
    backwards = dict(reversed(groups.items())) | {"empty": []}
    assert cluster_bootstrap(groups, seed=3) == cluster_bootstrap(backwards, seed=3)
    assert cluster_bootstrap(groups, seed=3) != cluster_bootstrap(groups, seed=4)
    assert cluster_bootstrap({"empty": []}) == NOTHING


def test_paired_mean_uses_shared_behaviors_only() -> None:
    first = {"a": 1.0, "b": 2.0, "only-first": 9.0}
    second = {"a": 0.5, "b": 1.0, "only-second": -9.0}
    difference = paired_mean_difference(first, second, resamples=4000)
    assert difference.value == pytest.approx(-0.75)
    assert (difference.low, difference.high, difference.n) == (-1.0, -0.5, 2)


def test_pairing_removes_what_the_behaviors_share() -> None:
    first = {str(i): float(i) for i in range(30)}
    second = {key: value - 1.0 for key, value in first.items()}
    difference = paired_mean_difference(first, second)
    assert difference.low == pytest.approx(-1.0)
    assert difference.high == pytest.approx(-1.0)


def test_newcombe_paired_difference_against_the_published_example() -> None:
    # Newcombe 1998, table II, 36 / 12 / 2 / 0 of 50 is 0.20 for first minus second: 0.0569 to 0.3404 (method 10).
    outcomes = [(True, True)] * 36 + [(True, False)] * 12 + [(False, True)] * 2
    first = {str(i): a for i, (a, _) in enumerate(outcomes)}
    second = {str(i): b for i, (_, b) in enumerate(outcomes)}
    difference = paired_rate_difference(first, second)
    assert difference.value == pytest.approx(-0.20)
    assert difference.low == pytest.approx(-0.3404, abs=5e-4)
    assert difference.high == pytest.approx(-0.0569, abs=5e-4)


def test_unanimous_change_keeps_a_width_and_swapping_mirrors_it() -> None:
    first = {str(i): True for i in range(12)}
    second = {str(i): False for i in range(12)}
    down, up = paired_rate_difference(first, second), paired_rate_difference(second, first)
    assert down.value == -1.0
    assert down.low == -1.0
    # Both Wilson limits leave 3.8414588 / 15.8414588 = 0.24249 of room; uncorrelated they add as a hypotenuse.
    assert down.high == pytest.approx(-1 + math.sqrt(2) * 0.242494, abs=1e-5)
    assert limits(up) == pytest.approx((-limits(down)[1], 1.0))
    assert paired_rate_difference({"a": True}, {"b": True}) == NOTHING
