from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import TypeAdapter

from dat_ray.measures.diversity import (
    MAX_PROMPTS_FOR_PAIRS,
    Diversity,
    distinct_n,
    diversity,
    jaccard_matrix,
    tokens,
    vendi_score,
)
from tests.unit.measures.limits import covers


def test_similarity_of_every_pair_by_hand() -> None:
    lists = [tokens("The cat sat"), tokens("the CAT ran, the cat"), tokens("dogs"), tokens("!!"), tokens("?")]
    expected = np.eye(5)
    expected[0, 1] = expected[1, 0] = 2 / 4
    expected[3, 4] = expected[4, 3] = 1.0
    assert jaccard_matrix(lists) == pytest.approx(expected)


def test_distinct_n_counts_ngrams_of_the_whole_set() -> None:
    lists = [["a", "b", "a"], ["a", "b"]]
    assert distinct_n(lists, 1) == pytest.approx(2 / 5)
    assert distinct_n(lists, 2) == pytest.approx(2 / 3)
    assert distinct_n(lists, 4) is None


def test_statistics_are_means_over_behaviors() -> None:
    same = ["how to bake", "How to bake?", "how to bake!"]
    found = diversity({"same": same, "other": ["red fox", "blue whale"], "none": []})
    assert (found.prompts, found.behaviors) == (5, 2)
    # Behavior "same": one of three is new; "other": all are.
    unique = (1 / 3 + 1) / 2
    assert found.unique.value == pytest.approx(unique)
    assert found.near_duplicate.value == pytest.approx((2 / 3 + 0) / 2)
    assert found.similarity.value == pytest.approx((1 + 0) / 2)
    assert found.distinct_1.value == pytest.approx((3 / 9 + 4 / 4) / 2)
    assert found.distinct_2.value == pytest.approx((2 / 6 + 2 / 2) / 2)
    assert found.words.value == pytest.approx((3 + 2) / 2)
    assert found.length_quantiles == (2, 2, 3, 3, 3)
    assert found.unique.n == 2
    assert covers(found.unique, unique)


def test_near_duplicates_at_the_threshold() -> None:
    four_of_five = ["a b c d", "a b c d e", "v w x y z"]
    assert diversity({"b": four_of_five}).near_duplicate.value == pytest.approx(1 / 3)
    assert diversity({"b": ["a b c", "a b c e", "v w x"]}).near_duplicate.value == 0.0


def test_prompts_without_spaces_are_not_one_word_each() -> None:
    # Nine of the ten pairs of eleven characters agree, over eleven pairs in all: 9 / 11 is past the threshold.
    alike = ["如何给邻居写一封粗鲁信", "如何给邻居写一封粗鲁话"]
    found = diversity({"b": alike})
    assert found.similarity.value == pytest.approx(9 / 11)
    assert found.near_duplicate.value == 0.5
    assert found.words.value == 11
    assert diversity({"b": [alike[0], "今天天气很好"]}).similarity.value == 0.0


def test_a_single_prompt_has_no_similarity_and_an_empty_set_no_numbers() -> None:
    alone = diversity({"b": ["one two"]})
    assert alone.similarity.value is None
    assert alone.unique.value == 1.0
    empty = diversity({})
    assert (empty.prompts, empty.unique.value, empty.length_quantiles) == (0, None, ())


def test_large_behaviors_are_represented_by_a_seeded_sample() -> None:
    many = [f"word{i} common" for i in range(MAX_PROMPTS_FOR_PAIRS * 2)]
    first, again = diversity({"b": many}, seed=1), diversity({"b": many}, seed=1)
    assert first == again
    assert first.prompts == len(many)
    assert first.similarity.value == pytest.approx(1 / 3, abs=1e-6)


def test_statistics_survive_json() -> None:
    found = diversity({"b": ["one two", "three"], "c": ["one"]})
    assert TypeAdapter(Diversity).validate_json(json.dumps(found.as_dict())) == found


def test_the_vendi_score_counts_different_texts() -> None:
    same, other = ["how", "to", "bake", "a", "cake"], ["red", "foxes", "never", "sleep", "soundly"]
    assert vendi_score([same] * 5) == pytest.approx(1.0)
    assert vendi_score([same, other]) == pytest.approx(2.0)
    assert vendi_score([same, same, other]) == pytest.approx(np.exp(-(2 / 3) * np.log(2 / 3) - (1 / 3) * np.log(1 / 3)))


def test_the_vendi_score_by_hand_for_two_texts_with_a_known_similarity() -> None:
    # Cosines: words {a, b} and {a, c}: 1/2; no pair shared; shorter than 3 and 4 words: whole texts, not shared.
    k = (1 / 2 + 0 + 0 + 0) / 4
    weights = np.array([1 + k, 1 - k]) / 2
    assert vendi_score([["a", "b"], ["a", "c"]]) == pytest.approx(np.exp(-(weights * np.log(weights)).sum()))
    # A word said twice counts twice: (2, 1) and (1, 0) have cosine 2 / sqrt 5; a text alone is its own longer grams.
    k = (2 / 5**0.5) / 4
    weights = np.array([1 + k, 1 - k]) / 2
    assert vendi_score([["a", "a", "b"], ["a"]]) == pytest.approx(np.exp(-(weights * np.log(weights)).sum()))


def test_the_effective_share_is_the_vendi_score_over_the_prompts() -> None:
    found = diversity({"same": ["x y"] * 4, "other": ["red fox", "blue whale"], "single": ["one"]})
    assert found.effective.value == pytest.approx((1 / 4 + 1) / 2)
    assert found.effective.n == 2
