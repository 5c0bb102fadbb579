"""Fronts of robustness against over-refusal: values by hand, a plain form that shares no code, coverage in simulated studies."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import astuple
from functools import partial

import numpy as np
import pytest

from dat_ray.measures.crossed import crossed_mean_difference, crossed_rate, crossed_rate_difference, seeds_from
from dat_ray.measures.fronts import (
    Checkpoint,
    Trail,
    front,
    front_difference,
    front_rate,
    front_seeds,
    mean_success,
    success_at,
    trails,
)
from dat_ray.measures.intervals import NOTHING

# The base model, a good checkpoint, one that another beats in both, the last.
BY_HAND = np.array([[0.1, 0.9], [0.3, 0.5], [0.4, 0.6], [0.5, 0.4]])


def test_a_front_by_hand() -> None:
    assert front(BY_HAND) == [(0.1, 0.9), (0.3, 0.5), (0.5, 0.4)]
    found = {x: success_at(BY_HAND, x) for x in (0.1, 0.2, 0.3, 0.4, 0.5)}
    assert found == {x: pytest.approx(y) for x, y in ((0.1, 0.9), (0.2, 0.7), (0.3, 0.5), (0.4, 0.45), (0.5, 0.4))}
    # No checkpoint refuses so little: nothing is made up. Where none refuses so much, the least broken one is the best there is.
    assert success_at(BY_HAND, 0.09) is None
    assert success_at(BY_HAND, 0.51) == pytest.approx(0.4)


def test_a_front_bends_one_way_and_is_flat_where_refusing_more_breaks_less_no_more() -> None:
    assert success_at(np.array([[0.0, 1.0], [0.5, 0.9], [1.0, 0.0]]), 0.5) == pytest.approx(0.5)
    worse = np.array([[0.1, 0.9], [0.3, 0.5], [0.6, 0.7]])
    assert [success_at(worse, x) for x in (0.5, 0.6, 0.61)] == [pytest.approx(0.5)] * 3
    # Of checkpoints that refuse alike the one that is broken less counts, and a training may refuse less than it began with.
    assert front(np.array([[0.2, 0.8], [0.2, 0.6], [0.1, 0.9]])) == [(0.1, 0.9), (0.2, 0.6)]


def test_the_area_by_hand() -> None:
    # From 0.1: a trapezoid of 0.2 at 0.7 on average; then 0.1 at 0.475; past the last checkpoint what it ended with.
    assert mean_success(BY_HAND, 0.3) == pytest.approx(0.7)
    assert mean_success(BY_HAND, 0.4) == pytest.approx((0.2 * 0.7 + 0.1 * 0.475) / 0.3)
    assert mean_success(BY_HAND, 0.7) == pytest.approx((0.2 * 0.7 + 0.2 * 0.45 + 0.2 * 0.4) / 0.6)
    assert mean_success(BY_HAND, 0.1) is None
    # From the base model's own over-refusal, whoever refuses less.
    less = np.array([[0.2, 0.8], [0.0, 0.8], [0.4, 0.2]])
    assert mean_success(less, 0.4) == pytest.approx(0.35)


def plain_success(points: Sequence[Sequence[float]], x: float) -> float:
    """The least attack success of any mixture of two checkpoints that refuses no more than x."""
    found = [y for refused, y in points if refused <= x]
    for (x_one, y_one), (x_two, y_two) in itertools.permutations(points, 2):
        if x_one < x < x_two:
            share = (x - x_one) / (x_two - x_one)
            found.append((1 - share) * y_one + share * y_two)
    return min(found)


def test_a_front_is_the_best_of_all_mixtures() -> None:
    rng = np.random.default_rng(3)
    for _ in range(40):
        points = np.round(rng.random((rng.integers(1, 8), 2)), 1)
        lowest = points[:, 0].min()
        for x in np.linspace(0, 1, 23):
            expected = plain_success(points.tolist(), x) if lowest <= x else None
            assert success_at(points, float(x)) == (None if expected is None else pytest.approx(expected))
        if points[0, 0] < 0.8:
            middles = points[0, 0] + (0.8 - points[0, 0]) * (np.arange(400) + 0.5) / 400
            plain = np.mean([plain_success(points.tolist(), x) for x in middles])
            assert mean_success(points, 0.8) == pytest.approx(plain, abs=2e-3)


def a_trail(
    rng: np.random.Generator, shape: tuple[int, int, int, int], fall: float = 3.0, world: np.random.Generator | None = None
) -> Trail:
    """K checkpoints of S seeds on B behaviors and H prompts, drawn from `world`: less broken and more refused one by one."""
    checkpoints, seeds, behaviors, prompts = shape
    at = np.linspace(0, 1, checkpoints)[:, None, None]
    hard, odd = ((world or rng).normal(0, 1.5, number) for number in (behaviors, prompts))
    robust, wary = rng.normal(0, 0.4, (2, 1, seeds, 1))
    broken = rng.random((checkpoints, seeds, behaviors)) < 1 / (1 + np.exp(-1.2 - hard + at * (fall + robust)))
    refused = rng.random((checkpoints, seeds, prompts)) < 1 / (1 + np.exp(2.5 - odd - at * (2.5 + wary)))
    # The base model is one model under every seed.
    broken[0], refused[0] = broken[0, :1], refused[0, :1]
    return Trail(broken.astype(float), refused.astype(float))


def of_one(points: np.ndarray) -> float | None:
    return float(points[-1, 1])


def test_of_one_checkpoints_attack_success_the_intervals_are_those_of_rates() -> None:
    first, second = (a_trail(np.random.default_rng(7), (3, 4, 15, 9), fall) for fall in (2.0, 4.0))
    tables = [[{str(b): bool(one) for b, one in enumerate(seed)} for seed in trail.broken[-1]] for trail in (first, second)]
    found = [front_rate(trail, of_one) for trail in (first, second)]
    for interval, expected in zip(found, map(crossed_rate, tables), strict=True):
        assert interval.value == pytest.approx(expected.value)
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-3)
    moved, expected_moved = front_difference(first, second, of_one), crossed_rate_difference(tables[0], tables[1])
    assert moved.p == pytest.approx(expected_moved.p, rel=1e-3)
    assert (moved.interval.low, moved.interval.high) == pytest.approx(
        (expected_moved.interval.low, expected_moved.interval.high), rel=1e-3
    )


def deleted(table: np.ndarray) -> list[np.ndarray]:
    return [np.delete(table, at, axis=2) for at in range(table.shape[2])]


def spread(values: Sequence[float | None]) -> float:
    found = np.array(values, dtype=float)
    return float((len(found) - 1) / len(found) * ((found - found.mean()) ** 2).sum())


def test_the_test_of_one_seed_goes_with_a_jackknife_of_behaviors_and_prompts() -> None:
    rng = np.random.default_rng(11)
    at = partial(success_at, over_refusal=0.25)
    first, second = a_trail(rng, (5, 1, 80, 90), 2.0), a_trail(rng, (5, 1, 80, 90), 2.6)

    def figure(one: Trail, two: Trail) -> float:
        ends = at(one.points), at(two.points)
        assert ends[0] is not None
        assert ends[1] is not None
        return ends[1] - ends[0]

    without = [
        figure(Trail(a, first.refused), Trail(b, second.refused))
        for a, b in zip(deleted(first.broken), deleted(second.broken), strict=True)
    ]
    asked = [
        figure(Trail(first.broken, a), Trail(second.broken, b))
        for a, b in zip(deleted(first.refused), deleted(second.refused), strict=True)
    ]
    error = np.sqrt(spread(without) + spread(asked))
    found = front_difference(first, second, at)
    assert found.interval.value == pytest.approx(figure(first, second))
    # Two-sided p of a normal at so many errors, since behaviors and prompts are many.
    distance = abs(figure(first, second)) / error
    tail = float(np.mean(np.abs(np.random.default_rng(0).normal(size=400_000)) > distance))
    assert found.p == pytest.approx(tail, abs=0.03)


def test_who_refuses_less_than_it_may_keeps_its_least_broken_and_who_refuses_more_has_nothing_there() -> None:
    rng = np.random.default_rng(1)
    reaches = a_trail(rng, (4, 3, 20, 40))
    short = Trail(reaches.broken[:2], reaches.refused[:2])
    at = partial(success_at, over_refusal=float(reaches.points[:, 0].max()) - 0.01)
    assert front_rate(short, at).value == pytest.approx(short.points[:, 1].min())
    least_broken = short.broken[[int(short.points[:, 1].argmin())]]
    alone = front_rate(Trail(least_broken, short.refused[:1]), partial(success_at, over_refusal=1.0))
    assert front_rate(short, at) == alone
    assert front_difference(reaches, short, at).p is not None
    below = partial(success_at, over_refusal=float(reaches.points[:, 0].min()) - 0.01)
    assert front_rate(reaches, below) == NOTHING
    assert front_difference(reaches, short, below).interval == NOTHING


def test_a_point_may_be_of_shares_whose_mean_is_the_same_however_a_mixture_is_drawn() -> None:
    # Two behaviors of four prompts each: three and one break the first adapter, none the second.
    broken = Checkpoint([{"a": 0.75, "b": 0.25}], [{"h": False}])
    trail = trails({"arm": [broken, Checkpoint([{"a": 0.0, "b": 0.0}], [{"h": True}])]})["arm"]
    assert trail.points.tolist() == [[0.0, 0.5], [1.0, 0.0]]
    rng = np.random.default_rng(4)
    prompts = np.array([[1, 1, 1, 0], [1, 0, 0, 0]])
    drawn = (rng.random((20_000, 1, 1)) < 0.5) | np.zeros((1, 2, 4), bool)
    each = rng.random((20_000, 2, 4)) < 0.5
    for which in (drawn, each):
        assert success_at(trail.points, 0.5) == pytest.approx((prompts * which).mean(), abs=0.01)


def test_few_units_have_no_limits_and_equal_arms_no_difference() -> None:
    trail = a_trail(np.random.default_rng(2), (4, 3, 20, 40))
    at = partial(success_at, over_refusal=float(trail.points[1, 0]))
    same = front_difference(trail, trail, at)
    assert (same.interval.value, same.p) == (0.0, 1.0)
    few = Trail(trail.broken[:, :, :1], trail.refused)
    assert front_rate(few, at).low is None
    assert front_difference(few, few, at).interval.low is None
    assert front_rate(Trail(trail.broken[:, :, :0], trail.refused), at) == NOTHING
    never = Trail(np.zeros_like(trail.broken), trail.refused)
    # None of 20 behaviors broken is no certainty.
    assert (front_rate(never, at).value, front_rate(never, at).low) == (0.0, 0.0)
    assert (front_rate(never, at).high or 0.0) > 0.1


def test_an_outcome_that_nobody_judged_is_filled_in() -> None:
    base = Checkpoint([{"a": True, "b": False}] * 2, [{"x": False, "y": True}] * 2)
    later = Checkpoint([{"b": True, "a": False}, {"a": True, "b": True, "c": True}], [{"y": True, "x": True}, {}])
    found = trails({"one": [base, later], "two": [base]})
    assert found["one"].broken.tolist() == [[[1, 0, 0.5], [1, 0, 0.5]], [[0, 1, 0.5], [1, 1, 1]]]
    # A seed whose adapter gave no answer that could be judged is as the other seeds are.
    assert found["one"].refused.tolist() == [[[0, 1], [0, 1]], [[1, 1], [1, 1]]]
    assert found["two"].points.tolist() == [[0.5, 0.5]]
    assert later.is_point
    assert not Checkpoint([{}, {}], [{"x": True}, {}]).is_point


def test_who_cannot_be_read_where_it_breaks_is_not_robust_for_it() -> None:
    """Two arms alike: half of the behaviors break; one adapter of three has no verdict on most of those that do."""
    whole = {f"b{at}": at < 24 for at in range(48)}
    half_read = {key: value for key, value in whole.items() if key not in {f"b{at}" for at in range(20)}}
    asked = [{"x": False, "y": True}] * 3
    found = trails({"dat": [Checkpoint([whole] * 3, asked)], "cat": [Checkpoint([whole, half_read, whole], asked)]})
    assert found["cat"].broken == pytest.approx(found["dat"].broken, abs=0.01)
    assert found["cat"].points[0, 1] == pytest.approx(0.5, abs=0.003)


def test_seeds_of_all_arms_together_by_hand() -> None:
    rng = np.random.default_rng(4)
    arms = [Trail(rng.random((1, 3, 20)) + rng.normal(0, 0.1, (1, 3, 1)), rng.random((1, 3, 30))) for _ in range(3)]
    figure = partial(success_at, over_refusal=0.9)
    seeds = front_seeds(arms, figure)
    # Of one checkpoint the figure is its attack success: what is refused has no part in it.
    expected_seeds = seeds_from([arm.broken[0].mean(axis=1) for arm in arms])
    assert seeds is not None
    assert expected_seeds is not None
    assert astuple(seeds.mean) == pytest.approx(astuple(expected_seeds.mean), rel=1e-6)
    assert astuple(seeds.difference) == pytest.approx(astuple(expected_seeds.difference), rel=1e-6)
    first, second = ([{str(at): float(one) for at, one in enumerate(row)} for row in arm.broken[0]] for arm in arms[:2])
    expected = crossed_mean_difference(first, second, seeds=seeds)
    assert front_difference(arms[0], arms[1], figure, seeds=seeds).p == pytest.approx(expected.p, rel=1e-4)
    assert front_seeds([Trail(arm.broken[:, :1], arm.refused[:, :1]) for arm in arms], figure) is None
    assert front_seeds(arms, partial(success_at, over_refusal=0.0)) is None


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Three seeds, 24 behaviors and 48 harmless prompts; the truth is that of very many."""
    shape, falls = (6, 3, 24, 48), (2.5, 4.0)
    many = [a_trail(np.random.default_rng(0), (6, 150, 1500, 1500), fall).points for fall in falls]
    for figure in (partial(success_at, over_refusal=0.25), partial(mean_success, over_refusal=0.25)):
        truth = [figure(points) for points in many]
        assert truth[0] is not None
        assert truth[1] is not None
        held = []
        for number in range(150):
            # The same behaviors and prompts for both arms, and seeds of their own.
            worlds = [np.random.default_rng([number, 2]) for _ in falls]
            arms = [a_trail(np.random.default_rng([number, at]), shape, falls[at], worlds[at]) for at in (0, 1)]
            rates = [front_rate(arm, figure) for arm in arms]
            moved = front_difference(arms[0], arms[1], figure).interval
            if moved.low is not None and moved.high is not None:
                inside = [(one.low or 0) <= (true or 0) <= (one.high or 1) for one, true in zip(rates, truth, strict=True)]
                held.append([*inside, moved.low <= truth[1] - truth[0] <= moved.high])
        assert len(held) > 120
        assert np.mean(held, axis=0).min() > 0.9


@pytest.mark.parametrize(("sizes", "least", "most"), [((24, 48), 0.01, 0.045), ((48, 64), 0.0, 0.035)])
@pytest.mark.parametrize("fall", [2.5, 4.0])
def test_fronts_look_better_than_they_are_by_the_points_that_the_page_says(
    sizes: tuple[int, int], least: float, most: float, fall: float
) -> None:
    """Adapters are chosen on the outcomes by which they are judged: docs/evaluation.md."""
    truth = a_trail(np.random.default_rng(0), (6, 150, 1500, 1500), fall).points
    for figure in (partial(success_at, over_refusal=0.25), partial(mean_success, over_refusal=0.25)):
        found = [figure(a_trail(np.random.default_rng([number, 7]), (6, 3, *sizes), fall).points) for number in range(300)]
        values = [one for one in found if one is not None]
        true = figure(truth)
        assert true is not None
        assert len(values) > 280
        assert least < true - np.mean(values) < most
