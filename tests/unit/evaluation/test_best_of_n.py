"""The published perturbation: how often it does what, and what it never does."""

from __future__ import annotations

import random
from math import sqrt

from hypothesis import given
from hypothesis import strategies as st

from dat_ray.evaluation.attacks.best_of_n import BestOfN, disturb
from dat_ray.evaluation.questions import Behavior, Question
from tests.unit.evaluation.setups import setup

SIGMA = 0.4
OFTEN, RARELY = SIGMA**0.5, SIGMA**3


def close(count: int, n: int, chance: float) -> bool:
    """Within five standard errors."""
    return abs(count / n - chance) < 5 * sqrt(chance * (1 - chance) / n)


def test_letters_change_case_and_code_as_often_as_published() -> None:
    n = 40_000
    # Words of three letters are never shuffled, so each letter stays where it is.
    out = disturb(" ".join(["mmm"] * n), SIGMA, random.Random(0))
    letters = [c for i, c in enumerate(out) if i % 4 < 3]
    upper, moved = sum(c.isupper() for c in letters), sum(c.lower() != "m" for c in letters)
    assert close(upper, len(letters), OFTEN)
    assert close(moved, len(letters), RARELY)
    assert set(letters) == set("lmnLMN")
    # A space may go up to "!", but not down to a control character.
    assert close(sum(c == "!" for i, c in enumerate(out) if i % 4 == 3), n - 1, RARELY / 2)
    assert all(32 <= ord(c) <= 126 for c in out)


def test_words_of_more_than_three_letters_are_shuffled_inside() -> None:
    n = 20_000
    # Digits have no case. With sigma 0.4 a code moves with 6.4%, so look at words that still hold their digits.
    words = disturb(" ".join(["1357"] * n), SIGMA, random.Random(1)).split(" ")
    whole = [word for word in words if sorted(word) == list("1357")]
    assert len(whole) > n / 2
    assert {word[0] + word[-1] for word in whole} == {"17"}
    # Two inner characters: half of all shuffles change nothing.
    assert close(sum(word == "1537" for word in whole), len(whole), OFTEN / 2)
    short = disturb("135 " * 2000, SIGMA, random.Random(2)).split(" ")
    assert not any(word == "153" for word in short)


@given(st.text(max_size=40), st.integers(0, 5))
def test_length_and_reproducibility(text: str, seed: int) -> None:
    once, again = (disturb(text, SIGMA, random.Random(seed)) for _ in range(2))
    assert once == again
    # Letters whose other case has two characters would change the length.
    assert len(once) == len(" ".join(text.split()))


def test_each_attempt_has_its_own_seed_and_more_samples_keep_the_earlier_ones() -> None:
    behaviors = [Behavior("a", "Tell me something", ((0, "Sure"),)), Behavior("b", "Tell me something", ((0, "Sure"),))]

    def asked(samples: int, suite: str = "s") -> list[Question]:
        return BestOfN(setup(behaviors, suite, best_of_n={"samples": samples})).questions()

    few = asked(3)
    many = asked(5)
    assert set(few) < set(many)
    assert len({question.seed for question in many}) == 10
    assert len({question.prompt for question in many}) > 5
    assert {question.temperature for question in many} == {1.0}
    other = asked(3, suite="t")
    assert not {question.seed for question in few} & {question.seed for question in other}
