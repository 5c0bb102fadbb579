"""Differences of rates over seeds and behaviors: by hand, at the edges, and how often they cover the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from dat_ray.measures.crossed import (
    Scatter,
    Seeds,
    crossed_mean_difference,
    crossed_rate,
    crossed_rate_difference,
    pooled_seeds,
    scatter_of,
    seeds_from,
    seeds_of,
)
from dat_ray.measures.intervals import student_quantile, student_tail
from tests.unit.measures.test_attempts import tail_above


def flags(table: Sequence[Sequence[int]]) -> list[dict[str, bool]]:
    return [{f"b{at}": bool(value) for at, value in enumerate(row)} for row in table]


def values(table: Sequence[Sequence[float]]) -> list[dict[str, float]]:
    return [{f"b{at}": value for at, value in enumerate(row)} for row in table]


@pytest.mark.parametrize(
    # Of printed tables of Student's distribution.
    ("t", "freedom", "tail"),
    [(12.706, 1, 0.025), (4.303, 2, 0.025), (2.086, 20, 0.025), (1.646, 1000, 0.05), (0.0, 7, 0.5), (1.0, 1, 0.25)],
)
def test_tails_of_students_distribution(t: float, freedom: int, tail: float) -> None:
    assert student_tail(t, freedom) == pytest.approx(tail, abs=2e-4 if freedom == 1000 else 2e-5)


def test_the_scatter_of_a_table_by_hand() -> None:
    # Two seeds, three behaviors: mean 3; seeds 2 and 4; behaviors 1.5, 3.5, 4.
    table = np.array([[1.0, 2.0, 3.0], [2.0, 5.0, 5.0]])
    # Sums of squares: seeds 3 (1 + 1) = 6 of 1; behaviors 2 (2.25 + .25 + 1) = 7 of 2; all 14, so that 1 of 2 is left.
    seeds, behaviors, rest = 6.0, 3.5, 0.5
    found = scatter_of(table)
    assert found.variance == pytest.approx((seeds + behaviors - rest) / 6)
    assert found.freedom == pytest.approx(9.0**2 / (seeds**2 / 1 + behaviors**2 / 2 + rest**2 / 2))


def test_a_difference_of_means_by_hand() -> None:
    # The difference is the table above: t = 3 / sqrt(1.5) with 81 / 42.25 degrees of freedom.
    before = [[0.5, 1.0, -1.0], [2.0, 0.0, 4.0]]
    after = [[1.5, 3.0, 2.0], [4.0, 5.0, 9.0]]
    found = crossed_mean_difference(values(before), values(after))
    assert found.interval.value == pytest.approx(3.0)
    freedom = 81 / 42.25
    assert found.interval.high is not None
    reach = (found.interval.high - 3.0) / math.sqrt(1.5)
    assert tail_above(reach, freedom) == pytest.approx(0.025, abs=1e-5)
    assert found.interval.low == pytest.approx(6.0 - found.interval.high)
    assert found.p == pytest.approx(2 * tail_above(3 / math.sqrt(1.5), freedom), abs=1e-5)


@pytest.mark.parametrize(
    ("table", "square", "freedom"),
    [
        # Behaviors differ less than what is left: the seeds' mean square alone, with theirs.
        ([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1]], "seeds", 2),
        # Seeds differ less.
        ([[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], "behaviors", 3),
    ],
)
def test_a_component_that_would_be_negative_counts_for_nothing(table: list[list[int]], square: str, freedom: int) -> None:
    array = np.array(table, dtype=float)
    axis = 1 if square == "seeds" else 0
    means = array.mean(axis=axis)
    # Mean square of a one-way table: its variance between means, times the values of each.
    expected = means.var(ddof=1) * array.shape[axis] / array.size
    found = scatter_of(array)
    assert found.variance == pytest.approx(expected)
    assert found.freedom == freedom


def test_arms_that_agree_everywhere_do_not_differ() -> None:
    table = flags([[1, 0, 1, 0, 1, 1], [1, 0, 0, 0, 1, 1]])
    found = crossed_rate_difference(table, table)
    assert (found.interval.value, found.p) == (0.0, 1.0)
    assert found.interval.low is not None
    assert found.interval.high is not None
    assert found.interval.low <= 0 <= found.interval.high


def test_an_interval_has_a_width_where_every_behavior_moves_alike() -> None:
    first, second = flags([[1] * 10] * 3), flags([[0] * 10] * 3)
    found = crossed_rate_difference(first, second)
    assert found.interval.value == -1.0
    assert found.interval.low == -1.0
    assert found.interval.high is not None
    assert -0.9 < found.interval.high < 0
    # Signs of ten behaviors: two of 1,024 assignments are as far.
    assert found.p == pytest.approx(2 / 1024)


def test_the_order_of_arms_turns_the_sign_alone() -> None:
    first, second = flags([[1, 1, 0, 1, 1], [1, 0, 1, 1, 1]]), flags([[0, 1, 0, 0, 1], [0, 0, 0, 1, 1]])
    there, back = crossed_rate_difference(first, second), crossed_rate_difference(second, first)
    assert there.interval.value == pytest.approx(-(back.interval.value or 0.0))
    assert there.interval.low == pytest.approx(-(back.interval.high or 0.0))
    assert there.p == back.p


def test_behaviors_that_one_model_lacks_are_left_out_of_both() -> None:
    first, second = flags([[1, 1, 0, 1], [1, 0, 1, 1]]), flags([[0, 1, 0, 0], [0, 0, 0, 1]])
    del second[1]["b3"]
    found = crossed_rate_difference(first, second)
    assert found.interval.n == 3
    assert found.interval.value == pytest.approx(1 / 6 - 4 / 6)


def test_nothing_is_claimed_of_one_seed_or_one_behavior() -> None:
    for first, second in ((flags([[1, 0, 1]]), flags([[0, 0, 1]])), (flags([[1], [1]]), flags([[0], [1]]))):
        found = crossed_rate_difference(first, second)
        assert found.interval.value is not None
        assert (found.interval.low, found.interval.high, found.p) == (None, None, None)
    assert crossed_rate_difference([], []).interval.value is None
    assert crossed_rate_difference(flags([[1]]), [{"other": True}]).interval.value is None


def test_the_rate_of_each_arm_is_the_one_shown_beside_the_difference() -> None:
    first, second = flags([[1, 1, 0, 1], [1, 0, 1, 1]]), flags([[0, 1, 0, 0], [0, 0, 0, 1]])
    moved = crossed_rate_difference(first, second).interval.value
    assert moved == pytest.approx((crossed_rate(second).value or 0.0) - (crossed_rate(first).value or 0.0))


def test_what_seeds_add_is_averaged_over_arms_by_hand() -> None:
    first, second = values([[0, 0.5], [1, 0.5]]), values([[0, 0], [0, 0]])
    # Means of the seeds 0.25 and 0.75, 0 and 0: variances 0.125 and 0, on average 0.0625, halved for a mean of two seeds. Half of
    # how the first moves it has in common with the second, and half not: two parts of 1 degree of freedom each.
    assert pooled_seeds([first, second]) == Seeds(Scatter(0.03125, 2.0), Scatter(0.0625, 1.0))
    # One arm: its difference from another of its kind varies twice as much.
    assert pooled_seeds([first]) == Seeds(Scatter(0.0625, 1.0), Scatter(0.125, 1.0))
    assert pooled_seeds([]) is None
    assert pooled_seeds([first[:1], second[:1]]) is None
    # An arm that nobody could judge is no arm.
    assert pooled_seeds([first, [{}, {}]]) == pooled_seeds([first])
    one, base = np.array([[0, 0.5], [1, 0.5]]), np.array([[0, 1.0], [0, 1.0]])
    seeds = Seeds(Scatter(0.1, 6.0), Scatter(0.05, 4.0))
    assert seeds_of(seeds, one, one) == Scatter(0.05, 4.0)
    assert seeds_of(seeds, base, one) == seeds_of(seeds, one) == Scatter(0.1, 6.0)
    assert seeds_of(seeds, base, base) == Scatter(0.0, 6.0)
    assert seeds_of(None, one) is None


def test_seeds_that_move_all_arms_alike_move_no_difference() -> None:
    shift = np.array([-0.1, 0.0, 0.1])
    found = seeds_from([0.3 + shift, 0.5 + shift, 0.4 + shift])
    assert found is not None
    # As one arm of three seeds: 0.01 / 3 with 2 degrees of freedom.
    assert (found.mean.variance, found.mean.freedom) == pytest.approx((0.01 / 3, 2.0))
    assert found.difference.variance == pytest.approx(0.0, abs=1e-12)


def test_what_seeds_add_to_a_difference_is_how_unlike_they_move_pairs_of_arms() -> None:
    means = np.random.default_rng(8).random((5, 3))
    found = seeds_from(list(means))
    assert found is not None
    pairs = [(one, two) for one in range(5) for two in range(one)]
    assert found.difference.variance == pytest.approx(np.mean([(means[one] - means[two]).var(ddof=1) / 3 for one, two in pairs]))
    assert found.difference.freedom == 8
    assert found.mean.variance == pytest.approx(np.mean([arm.var(ddof=1) / 3 for arm in means]))


def test_a_difference_with_pooled_seeds_by_hand() -> None:
    rng = np.random.default_rng(5)
    arms = [rng.random((3, 40)) + rng.normal(0, 0.1, (3, 1)) for _ in range(4)]
    seeds = pooled_seeds([values(arm.tolist()) for arm in arms])
    means = np.array([arm.mean(1) for arm in arms])
    unlike = means - means.mean(1, keepdims=True) - means.mean(0) + means.mean()
    by_seed = 2 * (unlike**2).sum() / 6 / 3
    moved = arms[1] - arms[0]
    by_behavior = moved.mean(0).var(ddof=1) / 40
    rest = moved - moved.mean(0) - moved.mean(1)[:, None] + moved.mean()
    of_rest = (rest**2).sum() / (2 * 39) / moved.size
    variance = by_seed + by_behavior - of_rest
    freedom = variance**2 / (by_seed**2 / 6 + by_behavior**2 / 39 + of_rest**2 / (2 * 39))
    found = crossed_mean_difference(values(arms[0].tolist()), values(arms[1].tolist()), seeds=seeds)
    assert found.p == pytest.approx(2 * student_tail(abs(moved.mean()) / math.sqrt(variance), freedom))
    reach = student_quantile(0.975, freedom) * math.sqrt(variance)
    assert (found.interval.low, found.interval.high) == pytest.approx((moved.mean() - reach, moved.mean() + reach))
    # Both forms of a difference test the same way.
    first, second = ([{key: value > 0.5 for key, value in seed.items()} for seed in values(arm.tolist())] for arm in arms[:2])
    pooled = pooled_seeds([first, second])
    assert crossed_rate_difference(first, second, seeds=pooled).p == crossed_mean_difference(first, second, seeds=pooled).p


@pytest.mark.slow
def test_at_the_level_of_many_tests_pooled_seeds_reject_as_seldom_as_they_say() -> None:
    """Eight arms that do not differ, three seeds: at 0.05/7 a test with each difference's own seeds rejects far more often.

    Half of what a seed does it does to all arms, which a difference does not have.
    """
    rng, level = np.random.default_rng(2), 0.05 / 7
    own, pooled, tests = 0, 0, 0
    for _ in range(300):
        behavior = rng.normal(0, 1.2, 48)
        odds = behavior + rng.normal(0, 0.4, (3, 1)) + rng.normal(0, 0.3, (8, 3, 1)) + rng.normal(0, 0.5, (8, 3, 48))
        arms = [values(arm.tolist()) for arm in rng.binomial(6, 1 / (1 + np.exp(-odds))) / 6]
        seeds = pooled_seeds(arms)
        for arm in arms[1:]:
            own += (crossed_mean_difference(arms[0], arm).p or 0) <= level
            pooled += (crossed_mean_difference(arms[0], arm, seeds=seeds).p or 0) <= level
            tests += 1
    assert own / tests > 2 * level
    assert pooled / tests < 1.5 * level


@pytest.mark.slow
@pytest.mark.parametrize("common", [0.0, 0.45])
def test_arms_of_a_study_are_told_apart_as_often_as_their_intervals_say(common: float) -> None:
    """Seven arms, three seeds, 48 behaviors of six prompts; a seed moves all arms by its `common` and each by its own."""
    rng, studies, own = np.random.default_rng(7), 150, 0.25
    # Of an arm that is easier by 0.5, by a fine sum over seeds, behaviors and their noise; 9 points.
    z = np.linspace(-8, 8, 20_001) * math.sqrt(1.2**2 + own**2 + common**2 + 0.5**2)
    weight = np.exp(-((np.linspace(-8, 8, 20_001)) ** 2) / 2)
    rate = [float((weight / (1 + np.exp(-(mean + z)))).sum() / weight.sum()) for mean in (0.0, 0.5)]
    covered, means, rejected, found_out, tests = 0, 0, 0, 0, 0
    for _ in range(studies):
        behavior = rng.normal(0, 1.2, 48)
        shifts = np.array([0.0] * 6 + [0.5])[:, None, None]
        odds = shifts + behavior + rng.normal(0, common, (3, 1)) + rng.normal(0, own, (7, 3, 1)) + rng.normal(0, 0.5, (7, 3, 48))
        arms = [values(arm.tolist()) for arm in rng.binomial(6, 1 / (1 + np.exp(-odds))) / 6]
        seeds = pooled_seeds(arms)
        for arm, truth in zip(arms[1:], [0.0] * 5 + [rate[1] - rate[0]], strict=True):
            found = crossed_mean_difference(arms[0], arm, seeds=seeds)
            assert found.interval.low is not None
            assert found.interval.high is not None
            assert found.p is not None
            covered += found.interval.low <= truth <= found.interval.high
            rejected += not truth and found.p < 0.05
            found_out += truth > 0 and found.p < 0.05
            tests += 1
        mean = crossed_rate(arms[0], seeds=seeds)
        means += (mean.low or 0.0) <= rate[0] <= (mean.high or 0.0)
    # Of 150 studies a share of 95% varies by 1.8 points.
    assert covered / tests >= 0.93, covered / tests
    assert rejected / (5 * studies) <= 0.07, rejected / (5 * studies)
    assert means / studies >= 0.9, means / studies
    # What all arms have in common costs nothing; taken for their own it hid two of three such differences.
    assert found_out / studies >= 0.35, found_out / studies


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_differences_cover_other_seeds_and_other_behaviors(shift: float) -> None:
    """Log odds of behavior, seed and their own noise add; both arms meet the same behaviors under seeds of their own."""
    rng, studies, seeds, behaviors = np.random.default_rng(3), 250, 4, 48

    def rate(mean: float) -> float:
        # By a fine sum over the normal distribution of what adds up.
        spread = math.sqrt(1.2**2 + 0.4**2 + 0.5**2)
        z = np.linspace(-8, 8, 100_001)
        weight = np.exp(-(z**2) / 2)
        return float((weight / (1 + np.exp(-(mean + spread * z)))).sum() / weight.sum())

    truth, covered, rejected = rate(shift) - rate(0.0), 0, 0
    for _ in range(studies):
        behavior = rng.normal(0, 1.2, behaviors)

        def arm(mean: float, behavior: np.ndarray = behavior) -> list[dict[str, bool]]:
            odds = mean + behavior + rng.normal(0, 0.4, (seeds, 1)) + rng.normal(0, 0.5, (seeds, behaviors))
            return flags((rng.random((seeds, behaviors)) < 1 / (1 + np.exp(-odds))).astype(int).tolist())

        found = crossed_rate_difference(arm(0.0), arm(shift))
        assert found.interval.low is not None
        assert found.interval.high is not None
        assert found.p is not None
        covered += found.interval.low <= truth <= found.interval.high
        rejected += found.p < 0.05
    # Nominally 95%; of 250 studies a share varies by 1.4 points.
    assert covered / studies >= 0.9, covered / studies
    # Of no difference the test rejects about one study in twenty; of one that is there, more.
    assert (rejected / studies <= 0.09) if shift == 0 else (rejected / studies >= 0.3), rejected / studies


def test_shares_have_the_interval_of_a_two_way_analysis() -> None:
    rng = np.random.default_rng(11)
    seeds, behaviors = 5, 60
    table = (
        0.5 + 0.15 * rng.normal(size=behaviors) + 0.03 * rng.normal(size=(seeds, 1)) + 0.1 * rng.normal(size=(seeds, behaviors))
    )
    table = table.clip(0.01, 0.99)
    rate = crossed_rate(values(table.tolist()))
    rest = table - table.mean(0) - table.mean(1)[:, None] + table.mean()
    by_seed, by_behavior = table.mean(1).var(ddof=1) / seeds, table.mean(0).var(ddof=1) / behaviors
    of_rest = (rest**2).sum() / ((seeds - 1) * (behaviors - 1)) / table.size
    variance = by_seed + by_behavior - of_rest
    freedom = variance**2 / (by_seed**2 / 4 + by_behavior**2 / 59 + of_rest**2 / (4 * 59))
    assert rate.value == pytest.approx(table.mean())
    # Wilson's form is Student's to the first order; four further behaviors that are entire count as in `wilson_mean`.
    assert rate.value is not None
    cautious = (60 * variance + 4 * rate.value * (1 - rate.value) / behaviors) / 64
    reach = student_quantile(0.975, freedom) * np.sqrt(cautious)
    assert ((rate.high or 0.0) - (rate.low or 0.0)) / 2 == pytest.approx(reach, rel=0.02)
