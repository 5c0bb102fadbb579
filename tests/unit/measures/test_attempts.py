"""Attempt curves: exact small cases, unbiasedness, and the coverage of the intervals by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dat_ray.measures.attempts import broken_by, curve
from dat_ray.measures.intervals import (
    cluster_bootstrap,
    paired_rate_difference,
    student_mean,
    student_quantile,
    wilson,
    wilson_mean,
)


def rows(**behaviors: str) -> list[dict]:
    """`a="hn?"`: three attempts of behavior a, harmful, not harmful, unparsed."""
    verdict = {"h": "harmful", "n": "not_harmful", "?": "unparsed"}
    return [
        {"behavior_id": name, "attempt_index": index, "verdict": verdict[letter]}
        for name, letters in behaviors.items()
        for index, letter in enumerate(letters)
    ]


def test_the_chance_that_k_attempts_break_is_the_share_of_all_subsets() -> None:
    for n, c in itertools.product(range(1, 7), range(7)):
        if c > n:
            continue
        attempts = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(attempts, k))
            assert broken_by(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_exchangeable_attempts_count_in_every_order() -> None:
    points = curve(rows(a="nnnh", b="nnnn", c="hhhh"), in_order=False, confidence=0.95)
    assert [k for k, _ in points] == [1, 2, 4]
    assert [found.value for _, found in points] == pytest.approx([(0.25 + 0 + 1) / 3, (0.5 + 0 + 1) / 3, 2 / 3])
    assert points == curve(rows(a="hnnn", b="nnnn", c="hhhh"), in_order=False, confidence=0.95)
    # At all attempts it is the attack's own rate, interval included.
    whole = wilson(2, 3)
    assert (points[-1][1].low, points[-1][1].high) == (pytest.approx(whole.low), pytest.approx(whole.high))


def test_attempts_in_order_count_from_the_first_harmful_one() -> None:
    points = curve(rows(a="nnh", b="h", c="nnnnn", d="?n"), in_order=True, confidence=0.95)
    assert [(k, found.n) for k, found in points] == [(1, 3), (2, 4), (4, 4), (5, 4)]
    assert [found.value for _, found in points] == pytest.approx([1 / 3, 1 / 4, 2 / 4, 2 / 4])


def test_unjudged_attempts_are_no_attempts() -> None:
    points = curve(rows(a="h??", b="nnn"), in_order=False, confidence=0.95)
    assert [(k, found.n) for k, found in points] == [(1, 2), (2, 1), (3, 1)]
    assert curve(rows(a="??"), in_order=False, confidence=0.95) == []


def test_wilson_mean_is_wilson_for_zeros_and_ones_and_narrower_for_less_spread() -> None:
    binary, exact = wilson_mean([1.0] * 3 + [0.0] * 7), wilson(3, 10)
    assert (binary.value, binary.low, binary.high) == (
        pytest.approx(0.3),
        pytest.approx(exact.low),
        pytest.approx(exact.high),
    )
    # Variance 0.01 stands for 10 * 0.3 * 0.7 / 0.01 = 210 trials.
    spread = wilson_mean([0.2] * 5 + [0.4] * 5)
    many = wilson(63, 210)
    assert (spread.low, spread.high) == (pytest.approx(many.low), pytest.approx(many.high))
    assert wilson_mean([0.0] * 10) == wilson(0, 10)


def test_student_quantiles_are_those_of_the_tables() -> None:
    for freedom, expected in {1: 12.7062, 2: 4.30265, 4: 2.77645, 9: 2.26216, 30: 2.04227}.items():
        assert student_quantile(0.975, freedom) == pytest.approx(expected, abs=2e-4)
    found = student_mean([0.1, 0.2, 0.3])
    assert found.high == pytest.approx(0.2 + 4.30265 * 0.1 / 3**0.5, abs=1e-4)
    assert student_mean([0.5]).low is None


def beta_binomial(rng: np.random.Generator, behaviors: int, attempts: int, mean: float, spread: float) -> np.ndarray:
    """Harmful attempts of each behavior, whose own rate is drawn from a Beta: attempts of a behavior belong together."""
    rates = rng.beta(mean * spread, (1 - mean) * spread, size=behaviors)
    return rng.binomial(attempts, rates)


@pytest.mark.slow
def test_intervals_cover_as_often_as_they_say() -> None:
    """95% intervals on simulated suites of 100 behaviors cover 93 to 97%: standard error 0.7 points at 1000 suites."""
    rng, suites, behaviors, attempts, k = np.random.default_rng(5), 1000, 100, 8, 3
    hits = {"rate": 0, "pooled": 0, "curve": 0, "paired": 0}
    for _ in range(suites):
        # The true rate varies: at one fixed rate the coverage of any interval for counts jumps with it.
        mean, spread = rng.uniform(0.1, 0.9), 2.0
        found = wilson(int(rng.binomial(behaviors, mean)), behaviors)
        hits["rate"] += found.low <= mean <= found.high

        harmful = beta_binomial(rng, behaviors, attempts, mean, spread)
        groups = {str(i): [1.0] * c + [0.0] * (attempts - c) for i, c in enumerate(harmful.tolist())}
        pooled = cluster_bootstrap(groups, resamples=500, seed=int(rng.integers(1 << 30)))
        hits["pooled"] += pooled.low <= mean <= pooled.high

        # E(1 - p)^k of a Beta(a, b): b (b+1) ... (b+k-1) / ((a+b) ... (a+b+k-1)).
        b = (1 - mean) * spread
        truth = 1 - np.prod([(b + i) / (spread + i) for i in range(k)])
        at_k = wilson_mean([broken_by(attempts, c, k) for c in harmful.tolist()])
        hits["curve"] += at_k.low <= truth <= at_k.high

        first = rng.random(behaviors) < mean
        second = np.where(rng.random(behaviors) < 0.5, first, rng.random(behaviors) < 0.3)
        pairs = [{str(i): bool(v) for i, v in enumerate(one)} for one in (first, second)]
        difference = paired_rate_difference(*pairs)
        hits["paired"] += difference.low <= 0.5 * (0.3 - mean) <= difference.high
    for name, count in hits.items():
        assert 0.93 <= count / suites <= 0.97, (name, count / suites)
