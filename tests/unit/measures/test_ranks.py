"""Spearman's correlation against its textbook form and against orders counted by hand."""

from __future__ import annotations

import random
from itertools import permutations

import pytest

from dat_ray.measures.ranks import MOST, rank_correlation


def test_without_equal_values_it_is_the_textbook_form() -> None:
    rng = random.Random(3)
    for n in (3, 5, 12):
        first, second = rng.sample(range(100), n), rng.sample(range(100), n)
        places = [{value: place for place, value in enumerate(sorted(one))} for one in (first, second)]
        squares = sum((places[0][a] - places[1][b]) ** 2 for a, b in zip(first, second, strict=True))
        found = rank_correlation(first, second)
        assert found is not None
        assert found.value == pytest.approx(1 - 6 * squares / (n * (n * n - 1)))
        assert (found.p is None) == (n > MOST)


def test_p_is_the_share_of_orders_that_are_as_far_from_none() -> None:
    # Of three things, two orders of six are as far from 0 as the same order: it and its reverse.
    same = rank_correlation([1, 2, 3], [10, 20, 30])
    assert same is not None
    assert same.value == pytest.approx(1.0)
    assert same.p == pytest.approx(2 / 6)
    assert same.n == 3
    # Of four with one exchange the squared distances are 2 together: as far are those of at most 2 and of at least 18.
    exchanged = rank_correlation([1, 2, 3, 4], [1, 3, 2, 4])
    distances = [sum((a - b) ** 2 for a, b in zip(order, range(4), strict=True)) for order in permutations(range(4))]
    assert exchanged is not None
    assert exchanged.p == pytest.approx(sum(one <= 2 or one >= 18 for one in distances) / 24)


def test_things_that_are_equal_share_their_rank() -> None:
    # Centered ranks -1.5, 0, 0, 1.5 and -1.5, -0.5, 0.5, 1.5: their products, 4.5, over the root of 4.5 times 5.
    found = rank_correlation([5.0, 7.0, 7.0, 9.0], [1.0, 2.0, 3.0, 4.0])
    assert found is not None
    assert found.value == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


def test_what_has_no_order_has_no_correlation() -> None:
    assert rank_correlation([1.0, 2.0], [1.0, 2.0]) is None
    assert rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert rank_correlation([], []) is None
