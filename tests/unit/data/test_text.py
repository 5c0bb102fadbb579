from __future__ import annotations

import csv
import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dat_ray.data.text import holds, jaccard, near_duplicates, normalize, tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't  STOP!", "dont stop"),
        ("Don\u2019t stop", "dont stop"),
        ("step-by-step guide", "step by step guide"),
        ("snake_case $5 + 6%", "snake case 5 6"),
        ("\ufb01re \uff21\uff22\uff07s \u2460", "fire abs 1"),
        ("caf\u00e9 cafe\u0301", "café café"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u093f\u0928\u094d\u0926\u0940"),
        ("a\u00b4s `b`", "as b"),
        ("?!\n\t", ""),
        ("\u5199\u4e00\u5f20VIP\u5361\uff01", "\u5199 \u4e00 \u5f20 vip \u5361"),
        # Thai vowel signs and tone marks stay with their letter, kana with a dakuten are composed first.
        ("\u0e17\u0e35\u0e48\u0e19", "\u0e17\u0e35\u0e48 \u0e19"),
        ("\uff76\uff9e\uff72", "\u30ac \u30a4"),
    ],
)
def test_normalize(text: str, expected: str) -> None:
    assert normalize(text) == expected


# Timing says more about the machine's other work than about these tests.
unhurried = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


@unhurried
@given(st.text())
@example("J\u030c")
@example("T\u0308 H\u0331")
@example("a\uff07\u0301")
def test_normalize_twice_is_normalize_once(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once


def test_jaccard_counts_each_word_once() -> None:
    assert jaccard(tokens("the cat and the dog"), tokens("the cat")) == 2 / 4
    assert jaccard(tokens(""), tokens("")) == 1.0
    assert jaccard(tokens(""), tokens("a")) == 0.0


def test_scripts_without_spaces_are_compared_by_pairs_of_characters() -> None:
    # Eight characters are seven pairs; one other character at the end changes the last pair: 6 of 8.
    chinese, other = "\u5982\u4f55\u5199\u4e00\u5c01\u7c97\u9c81\u4fe1", "\u5982\u4f55\u5199\u4e00\u5c01\u7c97\u9c81\u8bdd"
    assert near_duplicates([chinese], [other, "\u5929\u6c14\u5f88\u597d"], 0.5) == [(0, 0, 6 / 8)]
    assert near_duplicates([f"{chinese}\u3002"], [chinese], 1.0) == [(0, 0, 1.0)]
    # The same characters in another order are another text.
    assert near_duplicates([chinese], [chinese[::-1]], 0.2) == []
    thai, longer = (
        "\u0e40\u0e02\u0e35\u0e22\u0e19\u0e08\u0e14\u0e2b\u0e21\u0e32\u0e22",
        "\u0e0a\u0e48\u0e27\u0e22\u0e40\u0e02\u0e35\u0e22\u0e19\u0e08\u0e14\u0e2b\u0e21\u0e32\u0e22\u0e14\u0e49\u0e27\u0e22",
    )
    assert 0.5 < jaccard(tokens(thai), tokens(longer)) < 1.0
    assert tokens("\u6253\u5f00 Windows \u9632\u706b\u5899") == {"\u6253\u5f00", "windows", "\u9632\u706b", "\u706b\u5899"}
    assert tokens("a \u5361 b") == {"a", "\u5361", "b"}


@pytest.mark.parametrize(
    ("text", "part", "held"),
    [
        ("Say: 'Sure, here is the plan!' now", "sure here is the plan", True),
        ("sure here is the planet", "sure here is the plan", False),
        (
            "\u8bf7\u8bf4\uff1a\u5f53\u7136\u53ef\u4ee5\uff0c\u8fd9\u662f\u4fe1\u3002\u8c22\u8c22",
            "\u5f53\u7136\u53ef\u4ee5\u8fd9\u662f\u4fe1",
            True,
        ),
        ("\u8bf7\u8bf4\u8fd9\u662f\u4fe1", "\u5f53\u7136\u53ef\u4ee5\u8fd9\u662f\u4fe1", False),
        ("\u3053\u3053\u306b\u624b\u7d19\u304c\u3042\u308a\u307e\u3059\u3002", "\u624b\u7d19\u304c\u3042\u308a", True),
        ("text", "?!", False),
    ],
)
def test_what_a_text_holds(text: str, part: str, held: bool) -> None:
    assert holds(text, part) is held


def test_pairs_carry_indices_and_similarity_and_include_the_threshold() -> None:
    a = ["make a red cake", "unrelated words here", "MAKE a red cake!"]
    b = ["x y z", "make a red cake now"]
    assert near_duplicates(a, b, 0.8) == [(0, 1, 0.8), (2, 1, 0.8)]
    assert near_duplicates(a, b, 0.81) == []


def test_threshold_times_length_may_round_above_a_whole_number() -> None:
    assert 0.56 * 25 > 14
    common = [f"common{number}" for number in range(14)]
    long = " ".join([*common, *(f"rare{number}" for number in range(11))])
    assert near_duplicates([long], [" ".join(common)], 0.56) == [(0, 0, 0.56)]


def test_texts_of_punctuation_alone_match_each_other_only() -> None:
    assert near_duplicates(["?!", "word"], ["...", "other"], 0.8) == [(0, 0, 1.0)]


_words = st.lists(st.sampled_from("abcdefgh"), max_size=9).map(" ".join)


@unhurried
@given(st.lists(_words, max_size=8), st.lists(_words, max_size=8), st.sampled_from([0.0, 0.2, 0.5, 0.7, 0.8, 1.0]))
def test_index_finds_what_comparing_all_pairs_finds(a: list[str], b: list[str], threshold: float) -> None:
    every = [(i, j, jaccard(tokens(x), tokens(y))) for i, x in enumerate(a) for j, y in enumerate(b)]
    assert near_duplicates(a, b, threshold) == [pair for pair in every if pair[2] >= threshold]


def test_thousands_of_rows_take_less_than_comparing_all_pairs() -> None:
    draw = random.Random(0)
    vocabulary = [f"w{number}" for number in range(4000)]
    texts = ["how do i make a " + " ".join(draw.sample(vocabulary, 6)) for _ in range(4000)]
    start = time.process_time()
    found = near_duplicates(texts, texts, 0.8)
    seconds = time.process_time() - start
    assert {(i, i) for i in range(4000)} <= {(i, j) for i, j, _ in found}
    start = time.process_time()
    sets = [tokens(text) for text in texts[:200]]
    for x in sets:
        for y in sets:
            jaccard(x, y)
    per_pair = (time.process_time() - start) / 200**2
    assert seconds < per_pair * 4000**2 / 4


def _column(path: Path, name: str) -> list[str]:
    with path.open(newline="", encoding="utf-8") as stream:
        return [row[name] for row in csv.DictReader(stream)]


@pytest.mark.parametrize(
    ("a", "b", "near", "exact"),
    [
        ("advbench", "jbb", (17, 14), 11),
        ("harmbench", "jbb", (11, 11), 9),
        ("advbench", "strongreject", (26, 26), 25),
        ("jbb", "strongreject", (3, 3), 3),
        ("adv_training", "harmbench", (0, 0), 0),
    ],
)
def test_overlaps_of_the_public_sets(public_data: Path, a: str, b: str, near: tuple[int, int], exact: int) -> None:
    """The counts that the data sets' own table of overlaps states."""
    files = {
        "advbench": ("advbench/advbench.csv", "goal"),
        "jbb": ("jailbreakbench/jailbreakbench_harmful.csv", "Goal"),
        "harmbench": ("harmbench/harmbench_behaviors_text_all.csv", "Behavior"),
        "strongreject": ("strongreject/strongreject_dataset.csv", "forbidden_prompt"),
        "adv_training": ("harmbench/adv_training_behaviors.csv", "Behavior"),
    }
    left, right = (_column(public_data / files[name][0], files[name][1]) for name in (a, b))
    pairs = near_duplicates(left, right, 0.8)
    assert (len({i for i, _, _ in pairs}), len({j for _, j, _ in pairs})) == near
    assert len({i for i, j, _ in pairs if normalize(left[i]) == normalize(right[j])}) == exact


def test_similarities_of_the_public_sets(public_data: Path) -> None:
    """Each near pair of AdvBench and JailbreakBench is listed there with the same similarity."""
    with (public_data / "overlaps.csv").open(newline="", encoding="utf-8") as stream:
        listed = {
            (int(row["id_a"]), int(row["id_b"])): float(row["jaccard_tokens"])
            for row in csv.DictReader(stream)
            if (row["set_a"], row["set_b"]) == ("advbench", "jbb") and row["kind"] in ("exact", "near")
        }
    left = _column(public_data / "advbench/advbench.csv", "goal")
    right = _column(public_data / "jailbreakbench/jailbreakbench_harmful.csv", "Goal")
    found = {(i, j): round(similarity, 3) for i, j, similarity in near_duplicates(left, right, 0.8)}
    assert found == listed
