"""Attempt curves: exact small cases, unbiasedness, and the coverage of the intervals by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from dat_ray.measures.attempts import broken_by, budget_curve, curve
from dat_ray.measures.crossed import crossed_rate
from dat_ray.measures.intervals import (
    paired_rate_difference,
    student_mean,
    student_quantile,
    wilson,
    wilson_mean,
    wilson_pooled,
)
from tests.unit.measures.limits import covers, limits


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
    assert limits(points[-1][1]) == pytest.approx(limits(wilson(2, 3)))


def test_attempts_in_order_count_from_the_first_harmful_one() -> None:
    points = curve(rows(a="nnh", b="h", c="nnnnn", d="?n"), in_order=True, confidence=0.95)
    # d, whose first attempt has no verdict, is none that the first attempt broke; it is there from the beginning.
    assert [(k, found.n) for k, found in points] == [(1, 4), (2, 4), (4, 4), (5, 4)]
    assert [found.value for _, found in points] == pytest.approx([1 / 4, 1 / 4, 2 / 4, 2 / 4])


def test_unjudged_attempts_are_no_attempts() -> None:
    points = curve(rows(a="h??", b="nnn"), in_order=False, confidence=0.95)
    assert [(k, found.n, found.value) for k, found in points] == [(1, 2, 0.5), (2, 2, 0.5), (3, 2, 0.5)]
    assert curve(rows(a="??"), in_order=False, confidence=0.95) == []


@pytest.mark.parametrize("in_order", [False, True])
def test_a_curve_rises_on_one_set_of_behaviors_to_the_attacks_own_rate(in_order: bool) -> None:
    rng = np.random.default_rng(11)
    for _ in range(20):
        # Behaviors that the sampler serves well have many judged attempts, and are broken more often.
        letters = {str(i): "".join(rng.choice(list("hn?"), int(rng.integers(1, 13)), p=[0.1, 0.5, 0.4])) for i in range(20)}
        made = rows(**letters, served="hhn" * 8, silent="????")
        points = curve(made, in_order=in_order, confidence=0.95)
        judged = {name for name, word in {**letters, "served": "h"}.items() if set(word) & {"h", "n"}}
        broken = sum("h" in word for word in letters.values()) + 1
        assert {found.n for _, found in points} == {len(judged)}
        values = [found.value for _, found in points if found.value is not None]
        assert values == sorted(values)
        last, rate = points[-1][1], wilson(broken, len(judged))
        assert (last.value, *limits(last)) == pytest.approx((rate.value, *limits(rate)))


def test_wilson_mean_is_wilson_for_zeros_and_ones_and_narrower_for_less_spread() -> None:
    binary, exact = wilson_mean([1.0] * 3 + [0.0] * 7), wilson(3, 10)
    assert (binary.value, *limits(binary)) == pytest.approx((0.3, *limits(exact)))
    # Variance 0.01 stands for 10 * 0.3 * 0.7 / 0.01 = 210 trials, of which 10 telling behaviors are believed at 10 / 14:
    # 1 / (10/14/210 + 4/14/10) = 31.28 trials, half-way to one trial a behavior.
    spread, few, many = wilson_mean([0.2] * 5 + [0.4] * 5), wilson(3, 10), wilson(63, 210)
    z2, n = 3.841459, 1 / (10 / 14 / 210 + 4 / 14 / 10)
    assert n == pytest.approx(31.28, abs=0.01)
    half = (z2 * 0.21 / n + z2**2 / (4 * n * n)) ** 0.5 / (1 + z2 / n)
    center = (0.3 + z2 / (2 * n)) / (1 + z2 / n)
    assert limits(spread) == pytest.approx((center - half, center + half))
    assert limits(few)[0] < limits(spread)[0] < limits(many)[0]
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
        hits["rate"] += covers(found, mean)

        harmful = beta_binomial(rng, behaviors, attempts, mean, spread)
        groups = {str(i): [1.0] * c + [0.0] * (attempts - c) for i, c in enumerate(harmful.tolist())}
        pooled = wilson_pooled(groups)
        hits["pooled"] += covers(pooled, mean)

        # E(1 - p)^k of a Beta(a, b): b (b+1) ... (b+k-1) / ((a+b) ... (a+b+k-1)).
        b = (1 - mean) * spread
        truth = 1 - math.prod((b + i) / (spread + i) for i in range(k))
        at_k = wilson_mean([broken_by(attempts, c, k) for c in harmful.tolist()])
        hits["curve"] += covers(at_k, truth)

        first = rng.random(behaviors) < mean
        second = np.where(rng.random(behaviors) < 0.5, first, rng.random(behaviors) < 0.3)
        pairs = [{str(i): bool(v) for i, v in enumerate(one)} for one in (first, second)]
        difference = paired_rate_difference(*pairs)
        hits["paired"] += covers(difference, 0.5 * (0.3 - mean))
    for name, count in hits.items():
        # A curve's mean leans on the four behaviors that `wilson_mean` adds: a little wide.
        assert 0.93 <= count / suites <= 0.985, (name, count / suites)


def within(attempts: list[tuple[int, bool]], budget: int, orders: list[tuple[int, ...]]) -> float:
    """Share of the orders in which a harmful answer comes before the budget is spent, by walking through each."""
    broken = 0
    for order in orders:
        left = budget
        for place in order:
            left -= attempts[place][0]
            if left < 0:
                break
            if attempts[place][1]:
                broken += 1
                break
    return broken / len(orders)


def test_a_budget_buys_attempts_until_it_is_spent() -> None:
    pair = [(3, False), (2, False), (4, True)]
    gcg = [(100, False), (1, True)]
    points = budget_curve({"a": pair, "b": gcg, "none": []}, in_order=True, confidence=0.95)
    assert [budget for budget, _ in points] == [1, 2, 4, 8, 16, 32, 64, 101]
    everyone = list(itertools.permutations(range(2)))[:1], list(itertools.permutations(range(3)))[:1]
    for budget, found in points:
        expected = [within(pair, budget, everyone[1]), within(gcg, budget, everyone[0])]
        assert found.value == pytest.approx(sum(expected) / 2)
        assert found.n == 2
    assert points[-1][1] == wilson(2, 2)


@pytest.mark.parametrize("cost", [1, 9])
def test_exchangeable_attempts_of_one_cost_count_in_every_order(cost: int) -> None:
    attempts = [(cost, place in (1, 4)) for place in range(6)]
    orders = list(itertools.permutations(range(6)))
    points = budget_curve({"a": attempts}, in_order=False, confidence=0.95)
    assert points[-1][0] == 6 * cost
    for budget, found in points:
        assert found.value == pytest.approx(within(attempts, budget, orders))


def test_exchangeable_attempts_of_unlike_cost_come_near_the_mean_over_every_order() -> None:
    attempts = [(9, True), (2, False), (2, False), (5, True), (1, False), (4, False)]
    orders = list(itertools.permutations(range(6)))
    for budget, found in budget_curve({"a": attempts}, in_order=False, confidence=0.95):
        # Of 256 orders: three standard errors are at most 9.4 points.
        assert found.value == pytest.approx(within(attempts, budget, orders), abs=0.094)


def test_a_curve_of_many_samples_is_exact_at_both_ends() -> None:
    letters = "n" * 63 + "h"
    points = curve(rows(a=letters, b="n" * 64), in_order=False, confidence=0.95)
    assert [k for k, _ in points] == [1, 2, 4, 8, 16, 32, 64]
    assert [found.value for _, found in points] == pytest.approx([k / 64 / 2 for k, _ in points])
    assert budget_curve({}, in_order=False, confidence=0.95) == []
    free = budget_curve({"a": [(0, False), (0, True)]}, in_order=False, confidence=0.95)
    assert [(budget, found.value) for budget, found in free] == [(0, 1.0)]


def test_a_pooled_rate_at_its_ends_is_as_sure_as_its_behaviors() -> None:
    none, every = ({str(i): [value] * 4 for i in range(100)} for value in (0.0, 1.0))
    # z^2 / (n + z^2) at n = 100 behaviors, not at 400 attempts.
    assert wilson_pooled(none).high == pytest.approx(3.841459 / 103.841459, abs=1e-6)
    assert wilson_pooled(none).low == 0.0
    assert wilson_pooled(every).low == pytest.approx(1 - 3.841459 / 103.841459, abs=1e-6)
    # One harmful attempt more tells more, and no limit jumps.
    one = none | {"0": [1.0, 0.0, 0.0, 0.0]}
    assert 0.030 < limits(wilson_pooled(one))[1] < 0.042
    assert wilson_pooled({"a": [1.0, 0.0], "b": []}).n == 1
    alone = wilson_pooled({"a": [1.0, 0.0, 0.0, 1.0]})
    assert limits(alone) == pytest.approx((0.0545, 0.9455), abs=1e-3)
    # Attempts that go together entirely are their behaviors; one a behavior is Wilson's own.
    together, behaviors = wilson_pooled({str(i): [float(i < 30)] * 7 for i in range(100)}), wilson(30, 100)
    assert limits(together) == pytest.approx(limits(behaviors))
    plain, expected = wilson_pooled({str(i): [float(i < 30)] for i in range(100)}), wilson(30, 100)
    assert limits(plain) == pytest.approx(limits(expected))


def tail_above(t: float, freedom: float) -> float:
    """Student's density summed along t itself."""
    points = np.exp(np.linspace(math.log(t), math.log(1e5), 400_001))
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(math.pi * freedom)
    return float(np.trapezoid(scale * (1 + points**2 / freedom) ** (-(freedom + 1) / 2), points))


def test_rates_crossed_by_seed_and_behavior_by_hand() -> None:
    table = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]]
    outcomes = [{str(i): bool(value) for i, value in enumerate(row)} for row in table]
    # Means of seeds 1/2, 1/4, 3/4; of behaviors 1, 2/3, 1/3, 0; of all 1/2. Mean squares: 4 (2/16) / 2 = 1/4;
    # 3 (1/4 + 1/36 + 1/36 + 1/4) / 3 = 5/9; what is left of the total 12/4 is 3 - 1/2 - 5/3 = 5/6, over 6 degrees.
    square = 1 / 4 + 5 / 9 - 5 / 36
    share = 3 / 7
    trials = 1 / (share * square / 12 / 0.25 + (1 - share) / 4)
    freedom = square**2 / ((1 / 4) ** 2 / 2 + (5 / 9) ** 2 / 3 + (5 / 36) ** 2 / 6)
    # Between those of 3 and 4 degrees in printed tables, 3.18245 and 2.77645.
    t = 3.0553
    assert tail_above(t, freedom) == pytest.approx(0.025, abs=5e-6)
    trials *= (1.959964 / t) ** 2
    z2 = 3.841459
    half = (z2 * 0.25 / trials + z2**2 / (4 * trials * trials)) ** 0.5 / (1 + z2 / trials)
    found = crossed_rate(outcomes)
    assert (found.value, found.n) == (0.5, 4)
    assert limits(found) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)
    same = [{str(i): False for i in range(100)}] * 3
    assert crossed_rate(same) == wilson(0, 100)
    assert crossed_rate(outcomes[:1]).low is None
    assert crossed_rate([]).value is None


@pytest.mark.slow
def test_crossed_intervals_cover_other_seeds_and_other_behaviors() -> None:
    rng, suites, seeds, behaviors = np.random.default_rng(8), 600, 4, 60
    hits = 0
    for _ in range(suites):
        # Log odds of a behavior and a seed add: the true rate is over both.
        odds = rng.normal(-0.5, 1.0, behaviors)[None, :] + rng.normal(0, 0.4, seeds)[:, None]
        broken = rng.random((seeds, behaviors)) < 1 / (1 + np.exp(-odds))
        found = crossed_rate([{str(i): bool(value) for i, value in enumerate(row)} for row in broken])
        hits += covers(found, TRUE_RATE)
    assert 0.93 <= hits / suites <= 0.995, hits / suites


# Mean of 1 / (1 + exp(-x)) for x normal with mean -0.5 and variance 1 + 0.16, by a fine sum.
_X = np.linspace(-12, 12, 200_001)
TRUE_RATE = float((np.exp(-((_X + 0.5) ** 2) / 2 / 1.16) / (1 + np.exp(-_X))).sum() / np.exp(-((_X + 0.5) ** 2) / 2 / 1.16).sum())
