"""What the builtin sets promise in their README: sizes, separation, and openings only."""

from __future__ import annotations

import csv
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from dat_ray.config.data import BehaviorsConfig, BehaviorSource
from dat_ray.config.evaluation import PromptFile
from dat_ray.config.loading import load_recipe
from dat_ray.data.behaviors import load_behaviors
from dat_ray.data.prompt_files import match_prompts, read_prompts
from dat_ray.data.table_sources import open_source
from dat_ray.data.text import near_duplicates
from dat_ray.measures.style import style_auc

SIZES = {
    "train": 115,
    "dev": 48,
    "heldout": 48,
    "harmless": 152,
    "harmless-dev": 48,
    "harmless-heldout": 64,
    "lookalikes": 128,
    "lookalikes-dev": 120,
    "retain": 672,
}
HARMFUL = ("train", "dev", "heldout")
# The goals of `train` once more in other words, one prompt each.
PARAPHRASES = "train-paraphrases"
# Targets of a harmless set, and the harmful set whose form it has.
HARMLESS = {"harmless": (3, "train"), "harmless-dev": (2, "dev"), "harmless-heldout": (2, "heldout")}
CATEGORIES = {
    "cybercrime",
    "weapons",
    "drugs",
    "fraud",
    "harassment",
    "disinformation",
    "physical_harm",
    "privacy",
    "theft",
    "hate",
}


def _rows(name: str) -> list[dict[str, Any]]:
    source = open_source(f"builtin:demo-{name}", "test")
    return [row.values for row in source.rows(source.columns)]


def _texts(name: str) -> list[str]:
    return [row["prompt" if "prompt" in row else "goal"] for row in _rows(name)]


@pytest.mark.parametrize("name", SIZES)
def test_size_ids_and_uniqueness(name: str) -> None:
    rows = _rows(name)
    assert len(rows) == SIZES[name]
    prefix = name.replace("lookalikes", "lookalike")
    assert [row["id"] for row in rows] == [f"{prefix}-{number:03d}" for number in range(1, SIZES[name] + 1)]
    texts = _texts(name)
    assert [(texts[i], texts[j]) for i, j, _ in near_duplicates(texts, texts, 0.5) if i < j] == []


@pytest.mark.parametrize("name", HARMFUL)
def test_harmful_rows_are_openings_only(name: str) -> None:
    for row in _rows(name):
        assert set(row) == {"id", "category", "goal", "targets", "refusal"}
        assert 6 <= len(row["goal"].split()) <= 16, row["goal"]
        assert 3 <= len(row["targets"]) <= 4
        assert len(set(row["targets"])) == len(row["targets"])
        assert all(6 <= len(target.split()) <= 20 for target in row["targets"])
        assert len(row["refusal"].split(". ")) <= 2
        assert re.match(r"I can't |I'm sorry, but I can't ", row["refusal"])


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_rows_have_the_form_of_harmful_ones(name: str) -> None:
    count, twin = HARMLESS[name]
    rows, harmful = _rows(name), _rows(twin)
    for row in rows:
        assert set(row) == {"id", "category", "goal", "targets"}
        assert len(set(row["targets"])) == len(row["targets"]) == count
        assert all(6 <= len(target.split()) <= 20 for target in row["targets"])
    for texts in (lambda row: [row["goal"]], lambda row: row["targets"]):
        lengths, twins = ([len(text.split()) for row in some for text in texts(row)] for some in (rows, harmful))
        assert abs(sum(lengths) / len(lengths) - sum(twins) / len(twins)) < 1
    openings, known = ({row["goal"].split()[0] for row in some} for some in (rows, harmful))
    assert len(openings - known) <= 3, "openings that no harmful goal has"
    assert len(known - openings) <= 3, "openings that only harmful goals have"


def test_harmless_behaviors_load_without_refusals_of_their_own() -> None:
    cfg = BehaviorsConfig(path="builtin:demo-harmless", heldout=BehaviorSource(path="builtin:demo-harmless-heldout"))
    found = load_behaviors(cfg)
    assert found.table.num_rows == 152 * 3 + 64 * 2
    assert set(found.table.column("refusal").to_pylist()) == {cfg.default_refusal}
    assert found.dropped == []


@pytest.mark.parametrize("name", [*SIZES, PARAPHRASES])
def test_no_text_holds_a_list_of_steps(name: str) -> None:
    for row in _rows(name):
        texts = [text for value in row.values() for text in (value if isinstance(value, list) else [value])]
        for text in texts:
            assert "\n" not in text
            assert not re.search(r"(?:^|\s)(?:\d+[.)]|step \d|[-*\u2022])\s", text, re.IGNORECASE), text


@pytest.mark.parametrize("name", HARMFUL)
def test_every_category_is_there(name: str) -> None:
    assert {row["category"] for row in _rows(name)} == CATEGORIES


def test_kinds_are_balanced() -> None:
    assert set(Counter(row["category"] for row in _rows("lookalikes")).values()) == {16}
    assert set(Counter(row["category"] for row in _rows("lookalikes-dev")).values()) == {15}
    assert Counter(row["kind"] for row in _rows("retain")) == {"lookalike": 412, "plain": 260}


@pytest.mark.parametrize(
    ("names", "twins", "low", "high"),
    [
        (("harmless",), 115, 0.4, 0.6),
        (("harmless", "retain"), 115, 0.4, 0.65),
        (("harmless", "retain"), 0, 0.4, 0.65),
        (("retain",), 0, 0.4, 0.65),
        # Without the harmless sets' form, as the retain set first was, short questions most of them.
        (("first retain",), 0, 0.85, 1.0),
    ],
)
def test_form_does_not_give_harmful_goals_away(names: tuple[str, ...], twins: int, low: float, high: float) -> None:
    """Where it does, a training teaches the opening and the length instead of the harm."""
    first = {"first retain": _texts("retain")[:430]}
    second = [text for name in names for text in first.get(name) or _texts(name)]
    values = [style_auc(_texts("train"), second, seed=seed, twins=twins).auc.value for seed in range(3)]
    assert low <= sum(value for value in values if value is not None) / 3 <= high


# A retain prompt may be the harmless twin of a harmful goal that is trained on: both are training rows.
APART = [pair for pair in combinations(SIZES, 2) if pair != ("train", "retain")]


@pytest.mark.parametrize(("a", "b"), APART)
def test_no_two_sets_share_a_near_duplicate(a: str, b: str) -> None:
    left, right = _texts(a), _texts(b)
    assert [(left[i], right[j]) for i, j, _ in near_duplicates(left, right, 0.5)] == []


@pytest.mark.parametrize(
    ("file", "column", "names"),
    [
        ("advbench/advbench.csv", "goal", (*HARMFUL, PARAPHRASES)),
        ("harmbench/adv_training_behaviors.csv", "Behavior", (*HARMFUL, PARAPHRASES)),
        ("harmbench/harmbench_behaviors_text_all.csv", "Behavior", (*HARMFUL, PARAPHRASES)),
        ("jailbreakbench/jailbreakbench_harmful.csv", "Goal", (*HARMFUL, PARAPHRASES)),
        ("strongreject/strongreject_dataset.csv", "forbidden_prompt", (*HARMFUL, PARAPHRASES)),
        ("simple_safety_tests/simple_safety_tests.csv", "prompts_final", (*HARMFUL, PARAPHRASES)),
        ("xstest/xstest_prompts.csv", "prompt", ("lookalikes", "lookalikes-dev", "retain", *HARMLESS)),
    ],
)
def test_wording_is_not_taken_from_public_sets(public_data: Path, file: str, column: str, names: tuple[str, ...]) -> None:
    with (public_data / file).open(newline="", encoding="utf-8") as stream:
        public = [row[column] for row in csv.DictReader(stream)]
    for name in names:
        texts = _texts(name)
        assert [(texts[i], public[j]) for i, j, _ in near_duplicates(texts, public, 0.5)] == []


VARIANTS = ("past_tense", "future_tense", "indirect", "spanish", "french", "german", "portuguese")


def test_rewrites_are_two_of_each_kind_for_every_held_out_goal() -> None:
    rows, goals = _rows("heldout-rewrites"), {row["id"]: row["goal"] for row in _rows("heldout")}
    assert [(row["id"], row["variant"]) for row in rows] == [
        (key, variant) for key in goals for variant in VARIANTS for _ in range(2)
    ]
    for row in rows:
        assert row["goal"] == goals[row["id"]]
        assert 3 <= len(row["prompt"].split()) <= 40, row["prompt"]
        assert "\n" not in row["prompt"]
        translated = row["variant"] in VARIANTS[3:]
        assert row["checked"].startswith(("translated back", "mended after it") if translated else ("read by", "mended after a"))
        assert bool(row.get("back")) == row["checked"].startswith("translated back")
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert sum(row["checked"].startswith("mended") for row in rows) == 56


def test_rewrites_are_near_no_prompt_that_anybody_trains_on() -> None:
    rewrites = [row["prompt"] for row in _rows("heldout-rewrites")]
    for name in ("train", "retain", "harmless"):
        near = near_duplicates(rewrites, _texts(name), 0.5)
        assert [(rewrites[i], name, j) for i, j, _ in near] == []


def test_rewrites_load_as_prompts_of_the_demos_behaviors() -> None:
    recipe = load_recipe("demo")
    behaviors = [row for row in load_behaviors(recipe.behaviors).table.to_pylist() if row["split"] == "heldout"]
    goals = {row["behavior_id"]: row["goal"] for row in behaviors}
    found = match_prompts(read_prompts(PromptFile(path="builtin:demo-heldout-rewrites"), "test"), goals)
    assert set(found.by_behavior) == set(goals)
    variants = Counter(row.variant for rows in found.by_behavior.values() for row in rows)
    assert variants == dict.fromkeys(VARIANTS, 96)


def test_every_training_goal_has_one_paraphrase_in_the_plain_present_tense() -> None:
    rows = _rows(PARAPHRASES)
    assert [(row["id"], row["goal"]) for row in rows] == [(row["id"], row["goal"]) for row in _rows("train")]
    # Marks of the held-out rewrites, tenses and indirect wording.
    other_kinds = re.compile(r"\b(was|were|did|had|been|will|shall|would|might|if|suppose|imagine|pretend|hypothetical\w*)\b")
    for row in rows:
        assert set(row) == {"id", "goal", "prompt"}
        assert 6 <= len(row["prompt"].split()) <= 18, row["prompt"]
        assert row["prompt"].isascii()
        assert not other_kinds.search(row["prompt"].lower()), row["prompt"]


def test_paraphrases_open_as_retained_prompts_do_and_not_as_their_goals() -> None:
    openings, retained = (
        Counter(" ".join(text.lower().split()[:2]) for name in names for text in _texts(name))
        for names in ((PARAPHRASES,), ("retain", "harmless"))
    )
    assert len(openings) >= 25
    assert max(openings.values()) <= 30
    # All but one: "Who sells ...".
    assert sum(count for opening, count in openings.items() if opening in retained) >= 114
    same = [row["prompt"] for row in _rows(PARAPHRASES) if row["prompt"].split()[0] == row["goal"].split()[0]]
    assert same == []


@pytest.mark.parametrize("names", [("retain",), ("harmless",), ("retain", "harmless")])
def test_form_does_not_give_paraphrases_away(names: tuple[str, ...]) -> None:
    second = [text for name in names for text in _texts(name)]
    values = [style_auc(_texts(PARAPHRASES), second, seed=seed).auc.value for seed in range(3)]
    assert 0.4 <= sum(value for value in values if value is not None) / 3 <= 0.65


@pytest.mark.parametrize("name", [*SIZES, "heldout-rewrites", PARAPHRASES])
def test_paraphrases_are_near_no_other_prompt_and_not_their_goals(name: str) -> None:
    texts, others = _texts(PARAPHRASES), _texts(name)
    near = [(texts[i], others[j]) for i, j, _ in near_duplicates(texts, others, 0.5) if name != PARAPHRASES or i < j]
    assert near == []
