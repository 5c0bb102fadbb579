"""Form alone: nothing to tell in samples of one distribution, everything in disjoint openings, and no word of content."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest

from dat_ray.measures.style import FUNCTION_WORDS, auc, auc_interval, style_auc

OPENINGS = ("Write a", "Explain how to", "Tell me how to", "How do I", "Give me", "Draft a")
CONTENT = ("lamp", "harbor", "violin", "market", "ladder", "kettle", "garden", "letter", "bicycle", "castle")


def prompts(count: int, seed: int, openings: tuple[str, ...] = OPENINGS) -> list[str]:
    rng = random.Random(seed)
    return [f"{rng.choice(openings)} {' '.join(rng.choices(CONTENT, k=rng.randint(3, 8)))}" for _ in range(count)]


def test_samples_of_one_distribution_are_not_told_apart() -> None:
    values = [style_auc(prompts(120, seed), prompts(200, 100 + seed)).auc for seed in range(8)]
    points = [one.value for one in values if one.value is not None]
    assert sum(points) / 8 == pytest.approx(0.5, abs=0.04)
    assert sum(one.low <= 0.5 <= one.high for one in values if one.low is not None and one.high is not None) >= 7


def test_disjoint_openings_give_every_row_away_and_are_named() -> None:
    found = style_auc(prompts(60, 1, ("Teach me",)), prompts(90, 2, ("What is",)))
    assert found.auc.value == 1
    assert found.auc.low is not None
    assert 0.85 < found.auc.low < 1
    assert (found.first, found.second, found.auc.n) == (60, 90, 150)
    telling = {one.name: one for one in found.features}
    assert (telling['opens "teach me"'].first, telling['opens "teach me"'].second) == (1, 0)
    assert telling['opens "teach me"'].pull > 0
    assert telling['opens "what is"'].second == 1


def test_lengths_and_function_words_count_and_words_of_content_do_not() -> None:
    plain = [f"Write a {word}" for word in ("abcd", "bcda", "cdab", "dabc") * 5]
    other = [f"Write a {word}" for word in ("efgh", "fghe", "ghef", "hefg") * 5]
    assert style_auc(plain, other).auc.value == 0.5
    longer = [f"{text} {text.split()[2]}" for text in other]
    found = style_auc(plain, longer)
    assert found.auc.value == 1
    (words,) = [one for one in found.features if one.name == "words"]
    assert (words.first, words.second) == (3, 4)
    found = style_auc([f"{text} with abcde" for text in plain], [f"{text} efghi klm" for text in plain], seed=3)
    assert found.auc.value == 1
    assert 'word "with"' in {one.name for one in found.features}


def test_twins_lie_in_one_fold() -> None:
    # Openings that occur once in each set: a twin in another fold is all that a probe has learned of an opening.
    first = [f"{word} a {word}" for word in FUNCTION_WORDS[:60]]
    second = [f"{word} a {word[::-1]}" for word in FUNCTION_WORDS[:60]]
    apart, together = style_auc(first, second).auc.value, style_auc(first, second, twins=60).auc.value
    assert apart is not None
    assert together is not None
    assert apart < 0.3
    assert together > 0.4


def test_the_same_prompts_give_the_same_figure() -> None:
    first, second = prompts(50, 5), prompts(70, 6)
    assert style_auc(first, second) == style_auc(first, second)
    assert style_auc(first, second, seed=1).auc != style_auc(first, second, seed=2).auc


def test_auc_by_hand_and_by_counting_pairs() -> None:
    # Pairs: 3 > 1, 3 > 2, 3 > 2, 2 > 1, 2 = 2, 2 = 2: (4 + 2 / 2) / 6.
    assert auc(np.array([3.0, 2.0]), np.array([1.0, 2.0, 2.0])) == pytest.approx(5 / 6)
    rng = np.random.default_rng(0)
    for _ in range(20):
        positive, negative = rng.integers(0, 6, 13), rng.integers(0, 5, 9)
        counted = sum((p > n) + 0.5 * (p == n) for p, n in product(positive, negative)) / (13 * 9)
        assert auc(positive, negative) == pytest.approx(counted)


def test_limits_lie_as_far_as_they_should() -> None:
    for value, positives, negatives in ((0.7, 40, 90), (0.5, 10, 10), (0.95, 30, 300)):
        found = auc_interval(value, positives, negatives)
        assert found.low is not None
        assert found.high is not None
        for limit in (found.low, found.high):
            # Hanley and McNeil's variance written with their Q1 and Q2, both sets as large as the mean of the two.
            q1, q2, others = limit / (2 - limit), 2 * limit**2 / (1 + limit), (positives + negatives) / 2 - 1
            variance = limit * (1 - limit) + others * (q1 - limit**2) + others * (q2 - limit**2)
            assert abs(value - limit) == pytest.approx(1.959964 * (variance / (positives * negatives)) ** 0.5, rel=1e-6)
    wide, narrow = auc_interval(0.6, 4000, 4000, inflation=2.25), auc_interval(0.6, 4000, 4000)
    assert wide.high is not None
    assert narrow.high is not None
    assert (wide.high - 0.6) / (narrow.high - 0.6) == pytest.approx(1.5, abs=0.01)
    assert auc_interval(1.0, 20, 20).high == 1
    assert (auc_interval(1.0, 20, 20).low or 0) < 0.95
    assert auc_interval(0.0, 20, 20).low == 0


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be put in 5 folds"):
        style_auc(["a"] * 4, ["b"] * 9)
    with pytest.raises(ValueError, match="cannot be put in 1 folds"):
        style_auc(["a"] * 4, ["b"] * 9, folds=1)
    with pytest.raises(ValueError, match="10 twins"):
        style_auc(["a"] * 9, ["b"] * 12, twins=10)
