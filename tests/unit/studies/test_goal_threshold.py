"""The labeled prompts, and the figures that come of them."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dat_ray
from dat_ray.data.table_sources import open_source
from dat_ray.evaluation.agreement import cohen_kappa
from dat_ray.evaluation.calibration import shipped_goal_calibration

STUDIES = Path(dat_ray.__file__).parents[1] / "studies"
ENCODER = "embedded:all-minilm-l6-v2"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("goal_threshold", STUDIES / "goal_threshold.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look for the module that they are in.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


STUDY = script()
best_cut, logistic_weights, calibrate_goal = STUDY.best_cut, STUDY.logistic_weights, STUDY.calibrate_goal


def labels(name: str = "inpainted_prompts") -> list[dict[str, object]]:
    return [json.loads(line) for line in (STUDIES / f"labels/{name}.jsonl").read_text().splitlines()]


def test_labels_are_of_training_and_development_goals_alone() -> None:
    rows, selected = labels(), labels("selected_prompts")
    known = {}
    for name in ("train", "dev"):
        source = open_source(f"builtin:demo-{name}", "test")
        known[name] = {row.values["id"]: row.values["goal"] for row in source.rows(["id", "goal"])}
    assert len(rows) >= 300
    for row in [*rows, *selected]:
        assert known[str(row["split"])][row["behavior_id"]] == row["goal"]
        assert row["label"] in ("goal", "other_harm", "related", "unrelated", "unreadable")
    assert sum("second_label" in row for row in rows) == 100
    page = (STUDIES / "labels/README.md").read_text()
    for label, count in Counter(str(row["label"]) for row in rows).items():
        assert f"| `{label}` | {count} |" in page


def test_selected_prompts_lie_between_floor_and_ceiling_and_give_the_figures_that_are_told() -> None:
    rows = labels("selected_prompts")
    assert all(0.7 <= float(str(row["goal_similarity"])) < 0.95 for row in rows)
    page = (STUDIES.parent / "docs/experiments.md").read_text()

    def shares(samplers: tuple[str, ...], key: str) -> list[tuple[int, int]]:
        found = []
        for floor in (0.7, 0.75, 0.8):
            kept = [row["label"] for row in rows if row["sampler"] in samplers and floor in cast(list[float], row.get(key, []))]
            found.append((len(kept), round(100 * kept.count("goal") / len(kept))))
        return found

    six, guided = shares(("six steps",), "kept_at"), shares(("guidance 1.0",), "kept_at")
    both = shares(("six steps", "guidance 1.0"), "kept_at_of_both")
    for name, told in (("6 steps", six), ("**6 steps, guidance 1.0**", guided), ("four draws of each", both)):
        # How many have a prompt, the share on the goal, and how many were read where that is not all.
        [line] = re.findall(rf"^\| {re.escape(name)} \| ((?:\d+, [^|]*\| ?){{3}})$", page, re.MULTILINE)
        cells = re.findall(r"(\d+), \**(\d+)%\**(?: \(of (\d+) read\))?", line)
        assert [(int(read or kept), int(share)) for kept, share, read in cells] == told
    twice = [row for row in rows if "second_label" in row]
    assert len(twice) == 100
    assert sum(row["second_label"] == row["third_label"] for row in twice) == 99
    assert [sum(row[name] == "goal" for row in twice) for name in ("second_label", "third_label")] == [82, 81]


@pytest.mark.parametrize("name", ["demo_prompts", "demo_prompts_no_repeats"])
def test_what_was_told_of_the_demos_prompts_is_what_was_read(name: str) -> None:
    rows = labels(name)
    known = {
        split: {row.values["goal"] for row in open_source(f"builtin:demo-{split}", "test").rows(["goal"])}
        for split in ("train", "dev", "heldout")
    }
    by_split = {split: [row for row in rows if row["split"] == split] for split in known}
    assert sum(len(found) for found in by_split.values()) == len(rows)
    for split, found in by_split.items():
        assert {row["goal"] for row in found} <= known[split]
        # A prompt that is read twice for one goal would count twice.
        assert len({(row["behavior_id"], row["prompt"]) for row in found}) == len(found)
    page = " ".join((STUDIES.parent / "docs/experiments.md").read_text().split())

    def on_goal(found: list[dict[str, object]], name: str = "label") -> int:
        return sum(row[name] == "goal" for row in found)

    train, dev, heldout = by_split["train"], by_split["dev"], by_split["heldout"]
    assert bool(dev) == (name == "demo_prompts")
    assert len(train) == 100
    assert all(0.7 <= float(str(row["goal_similarity"])) < 0.95 for row in train)
    assert f"{on_goal(train)} and {on_goal(train, 'second_label')} ask for their goal." in page
    assert all(float(str(row["goal_similarity"])) >= 0.65 for row in heldout)
    counts = on_goal(heldout), on_goal(heldout, "second_label")
    shares = [round(100 * count / len(heldout)) for count in counts]
    assert f"Of the {len(heldout)} held-out prompts that were counted as attacks {counts[0]} and {counts[1]} do" in page
    assert f"({shares[0]}% and {shares[1]}%)" in page
    for floor in (0.6, 0.65, 0.7, 0.75, 0.8) if dev else ():
        above = [row for row in dev if float(str(row["goal_similarity"])) >= floor]
        told = f"above {floor} {round(100 * on_goal(above) / len(above))}%"
        goals = len({row["behavior_id"] for row in above})
        assert re.search(rf"{told}[^,]*\({goals}[ )]", page), told


def test_what_was_told_of_both_demos_prompts_in_one_sheet_is_what_was_read() -> None:
    rows = labels("heldout_prompts_mixed")
    page = " ".join((STUDIES.parent / "docs/experiments.md").read_text().split())
    told = []
    for no_repeats, name, verb in ((False, "demo_prompts", " ask for their goal"), (True, "demo_prompts_no_repeats", "")):
        found = [row for row in rows if row["no_repeats"] is no_repeats]
        own = {(row["behavior_id"], row["prompt"]) for row in labels(name) if row["split"] == "heldout"}
        assert {(row["behavior_id"], row["prompt"]) for row in found} == own
        assert len(found) == len(own)
        counts = [sum(row[label] == "goal" for row in found) for label in ("label", "second_label")]
        shares = [round(100 * count / len(found)) for count in counts]
        told.append(f"{counts[0]} and {counts[1]} of {len(found)}{verb} ({shares[0]}% and {shares[1]}%)")
    assert f"with stutter {told[0]}, of those without {told[1]}" in page


def rounded(tree: object) -> object:
    """The same with 12 digits of each number."""
    return json.loads(json.dumps(tree), parse_float=lambda text: f"{float(text):.12g}")


def test_the_shipped_figures_are_those_of_the_labels() -> None:
    found = shipped_goal_calibration(ENCODER)
    assert found is not None
    # Processors differ in the last digit of a fit.
    assert rounded(found.model_dump(mode="json")) == rounded(STUDY.calibration().model_dump(mode="json"))
    assert shipped_goal_calibration("another/encoder") is None
    twice = [row for row in labels() if "second_label" in row]
    readers = cohen_kappa([row["label"] == "goal" for row in twice], [row["second_label"] == "goal" for row in twice])
    assert found.second_kappa == pytest.approx(readers)
    # No goal is on both sides, and every labeled prompt is on one.
    assert found.chosen_on + found.measured_on == found.prompts
    assert found.at(0.61).cut == 0.6


def test_figures_of_a_cut_by_hand() -> None:
    def row(goal: str, similarity: float, on_goal: bool) -> object:
        return STUDY.LabeledPrompt(
            goal, "goal" if on_goal else "related", "goal" if on_goal else "related", similarity, -similarity
        )

    # Both halves alike, whichever goals they are: 3 of 4 right at 0.6.
    rows = [
        row(f"g{goal}", similarity, on_goal)
        for goal in range(8)
        for similarity, on_goal in ((0.9, True), (0.7, True), (0.65, False), (0.2, False))
    ]
    found = calibrate_goal(rows, "x", "made up")
    at = found.at(0.6)
    assert at.accuracy.rate == pytest.approx(0.75)
    assert (at.precision, at.recall) == (pytest.approx(2 / 3), 1.0)
    assert at.kappa == pytest.approx((0.75 - 0.5) / 0.5)
    assert at.auc == 1.0
    # The cut that was chosen parts them without an error; turned round, log p does not.
    assert found.similarity.cut == pytest.approx(0.675)
    assert found.similarity.accuracy.rate == 1.0
    assert found.target_logprob.auc == 0.0
    assert found.second_kappa == 1.0


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=30))
def test_no_cut_agrees_more_often_than_the_best(rows: list[tuple[int, bool]]) -> None:
    scores, wanted = [float(score) for score, _ in rows], [label for _, label in rows]

    def right(cut: float) -> int:
        return sum((score >= cut) == label for score, label in zip(scores, wanted, strict=True))

    assert right(best_cut(scores, wanted)) == max(right(cut - 0.5) for cut in range(10))


def test_a_cut_lies_halfway_between_two_scores() -> None:
    assert best_cut([0.2, 0.4, 0.8, 0.9], [False, False, True, True]) == pytest.approx(0.6)
    assert best_cut([0.2, 0.4], [True, True]) == 0.2
    with pytest.raises(ValueError, match="no rows"):
        best_cut([], [])


def test_the_logistic_fit_leaves_no_slope() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(400, 2))
    chance = 1 / (1 + np.exp(-(2.0 * features[:, 0] - 1.0 * features[:, 1] + 0.5)))
    wanted = rng.random(400) < chance
    weights = logistic_weights(features, [bool(one) for one in wanted])
    # At the best fit the labels and the fitted chances have the same sums, of the rows and of each feature.
    fitted = 1 / (1 + np.exp(-(features @ weights[:2] + weights[2])))
    assert (wanted - fitted).sum() == pytest.approx(0, abs=1e-2)
    assert features.T @ (wanted - fitted) == pytest.approx(np.zeros(2), abs=1e-2)
    assert weights == pytest.approx([2.0, -1.0, 0.5], abs=0.5)


def test_rows_that_can_be_parted_have_a_finite_fit() -> None:
    weights = logistic_weights(np.array([[-1.0], [1.0]]), [False, True])
    assert np.isfinite(weights).all()
    assert weights[0] > 0
