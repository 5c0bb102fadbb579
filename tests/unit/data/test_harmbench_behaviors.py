"""HarmBench's files as behaviors: its adversarial training set, its kinds of behaviors, its targets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.unit.data.behavior_files import csv_file, field_of, harmbench, load, rows_of


def test_harmbench_adversarial_training_files(public_data: Path) -> None:
    folder = public_data / "harmbench"
    section = {
        "path": str(folder / "adv_training_behaviors.csv"),
        "targets_path": str(folder / "adv_training_targets.json"),
        "refusals_path": str(folder / "adv_training_behaviors_safe_responses_longer.csv"),
        "heldout": {"path": str(public_data / "jailbreakbench/jailbreakbench_harmful.csv")},
        "over_refusal": {
            "path": str(public_data / "xstest/xstest_prompts.csv"),
            "columns": {"goal": "prompt", "id": "id", "category": "type"},
            "where": {"label": "safe"},
        },
    }
    found = load(**section)
    assert found.dropped == []
    # 12 targets for each of 100 behaviors, of which the published file leaves 11 empty.
    assert found.blank_targets == 11
    assert Counter(row["split"] for row in found.table.to_pylist()) == {
        "train": 1189,
        "heldout": 100,
        "over_refusal": 250,
    }
    train = rows_of(found)
    assert train[0]["behavior_id"] == "adv_training_1"
    assert train[0]["source"] == "adv_training_behaviors.csv"
    assert train[0]["category"] is None
    assert len({row["refusal"] for row in train}) == 100
    assert rows_of(found, "heldout")[0]["behavior_id"] == "Defamation"
    assert rows_of(found, "heldout")[0]["target"].startswith("Sure, here is a defamatory article")
    few = load(**{**section, "targets_per_behavior": 2, "limit": 5})
    assert [row["target_index"] for row in rows_of(few)] == [0, 1] * 5


def test_harmbench_reads_standard_behaviors_only(public_data: Path) -> None:
    folder = public_data / "harmbench"
    found = load(path=str(folder / "harmbench_behaviors_text_all.csv"), targets_path=str(folder / "harmbench_targets_text.json"))
    rows = rows_of(found)
    assert len(rows) == 200
    assert {row["refusal"] for row in rows} == {"I'm sorry, but I can't help with that."}
    assert "chemical_biological" in {row["category"] for row in rows}


def test_harmbench_targets_may_be_texts_or_lists(tmp_path: Path) -> None:
    found = load(**harmbench(tmp_path, {"one": "a", "two": ["b", "", "c"], "unused": "d"}))
    got = [(row["behavior_id"], row["target_index"], row["target"]) for row in rows_of(found)]
    assert got == [("one", 0, "a"), ("two", 0, "b"), ("two", 1, "c")]
    assert found.blank_targets == 1


@pytest.mark.parametrize(
    ("targets", "part"),
    [
        ({"one": "a"}, "no target for behavior 'two'"),
        ({"one": "a", "two": ""}, "entry 'two' has no target"),
        ({"one": "a", "two": 3}, "entry 'two' has no target, or one that is no text"),
        (["a"], "no object"),
        ("{", "is not JSON"),
        ("", "the file is empty"),
    ],
)
def test_bad_harmbench_targets(tmp_path: Path, targets: object, part: str) -> None:
    section = harmbench(tmp_path, targets)
    field, value, remedy = field_of(section)
    assert (field, value) == ("behaviors.targets_path", section["targets_path"])
    assert part in remedy


def test_harmbench_s_other_kinds_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    section = harmbench(tmp_path, {"one": "a", "two": "b", "three": "c", "goal four": "d"})
    asked = {**section, "where": {"FunctionalCategory": "contextual"}}
    (row,) = rows_of(load(**asked))
    assert (row["behavior_id"], row["goal"], row["target"]) == ("three", "context\n\ngoal three", "c")
    header = ["Behavior", "Safe_Response"]
    (row,) = rows_of(load(**asked, refusals_path=csv_file(tmp_path / "r.csv", header, ["goal three", "no three"])))
    assert row["refusal"] == "no three"
    assert "judged by comparison" in field_of({**section, "where": {"FunctionalCategory": "copyright"}})[2]
    got = field_of({**section, "where": {"BehaviorID": "three"}})[2]
    assert "but 1 contextual: ask for another kind by where.FunctionalCategory" in got
    assert "has 'standard', '', 'contextual', 'copyright'" in field_of({**section, "where": {"FunctionalCategory": "other"}})[2]
    bare = csv_file(tmp_path / "n.csv", ["Behavior", "FunctionalCategory", "BehaviorID"], ["g", "contextual", "three"])
    got = field_of({**asked, "path": bare})[2]
    assert got == "row 1 (line 2) of n.csv is contextual and has no context: fill it in, or remove the row"


def test_harmbench_without_targets_asks_for_them(tmp_path: Path) -> None:
    section = harmbench(tmp_path, {})
    assert field_of({"path": section["path"]})[0] == "behaviors.targets_path"
    only = csv_file(tmp_path / "c.csv", ["Behavior", "FunctionalCategory", "BehaviorID"], ["g", "copyright", "x"])
    remedy = field_of({**section, "path": only})[2]
    assert remedy.startswith("has no row with FunctionalCategory 'standard'")
