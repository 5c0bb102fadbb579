"""Tests of paired differences against every outcome counted, and their correction against published values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dat_ray.measures.significance import holm, mcnemar, sign_flip


def outcomes(only_first: int, only_second: int, both: int = 2, neither: int = 3) -> tuple[dict[str, bool], dict[str, bool]]:
    pairs = [(True, False)] * only_first + [(False, True)] * only_second + [(True, True)] * both + [(False, False)] * neither
    first, second = ({str(i): pair[side] for i, pair in enumerate(pairs)} for side in (0, 1))
    return first, second


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (0, 5), (3, 3), (7, 1), (2, 6)])
def test_mcnemar_is_the_share_of_all_ways_to_differ_that_are_as_uneven(b: int, c: int) -> None:
    ways = list(itertools.product((0, 1), repeat=b + c))
    uneven = sum(abs(2 * sum(way) - (b + c)) >= abs(b - c) for way in ways)
    assert mcnemar(*outcomes(b, c)) == pytest.approx(uneven / len(ways))
    assert mcnemar(*outcomes(c, b)) == mcnemar(*outcomes(b, c))


def test_what_is_not_shared_is_not_compared() -> None:
    assert mcnemar({"a": True}, {"b": False}) is None
    assert mcnemar({"a": True, "x": True}, {"a": True, "y": False}) == 1.0
    assert sign_flip({"a": 1.0}, {"b": 2.0}) is None
    # Beyond what floating point numbers hold.
    assert mcnemar(*outcomes(2000, 0)) == pytest.approx(0.0, abs=1e-300)


def test_sign_flips_by_hand_and_by_counting() -> None:
    # Differences 1, 2, 3: only all plus and all minus reach 6.
    first = {"a": 0.0, "b": 0.0, "c": 0.0}
    assert sign_flip(first, {"a": 1.0, "b": 2.0, "c": 3.0}) == 2 / 8
    # 1, 2, -3 sums to 0, which everything reaches.
    assert sign_flip(first, {"a": 1.0, "b": 2.0, "c": -3.0}) == 1.0
    rng = np.random.default_rng(3)
    second = {str(i): value for i, value in enumerate(rng.normal(0.5, 1.0, 16))}
    zero = dict.fromkeys(second, 0.0)
    values = list(second.values())
    sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in itertools.product((-1, 1), repeat=16)]
    exact = sum(one >= abs(sum(values)) - 1e-9 for one in sums) / len(sums)
    # Sixteen are drawn, not counted: 9,999 draws are sure to about 1.5 points.
    assert sign_flip(zero, second) == pytest.approx(exact, abs=0.015)
    assert sign_flip(zero, second, seed=1) == sign_flip(zero, second, seed=1)
    assert sign_flip(zero, dict.fromkeys(zero, 1.0)) == pytest.approx(1 / 10_000, abs=1e-3)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1, never falling.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_a_family_is_wrong_no_more_often_than_one_test_may_be() -> None:
    rng = np.random.default_rng(4)
    families = rng.random((2000, 10))
    uncorrected = (families.min(axis=1) <= 0.05).mean()
    corrected = np.mean([min(holm(list(family))) <= 0.05 for family in families])
    assert uncorrected > 0.35
    assert corrected <= 0.06
