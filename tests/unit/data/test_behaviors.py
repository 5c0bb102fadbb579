from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dat_ray.config.data import BehaviorsConfig, Value
from dat_ray.data.behavior_layouts import same_value
from dat_ray.data.behaviors import BehaviorSet, NearDuplicate, Targets, load_behaviors, parse_targets
from dat_ray.data.ids import row_id
from dat_ray.data.schemas import BEHAVIORS
from dat_ray.errors import InputError

HELDOUT = {"path": "builtin:demo-heldout", "limit": 1}


def _load(**section: Any) -> BehaviorSet:
    return load_behaviors(BehaviorsConfig.model_validate({"heldout": HELDOUT, **section}))


def _rows(found: BehaviorSet, split: str = "train") -> list[dict[str, Any]]:
    return [row for row in found.table.to_pylist() if row["split"] == split]


def _csv(path: Path, header: list[str], *rows: list[str]) -> str:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return str(path)


def _jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def test_builtin_splits_in_one_table() -> None:
    found = _load(path="builtin:demo-train", limit=2, over_refusal={"path": "builtin:demo-lookalikes", "limit": 3})
    assert found.table.schema == BEHAVIORS
    rows = found.table.to_pylist()
    assert list(Counter(row["split"] for row in rows)) == ["train", "heldout", "over_refusal"]
    assert [(row["behavior_id"], row["target_index"]) for row in rows] == [
        ("train-001", 0),
        ("train-001", 1),
        ("train-001", 2),
        ("train-002", 0),
        ("train-002", 1),
        ("train-002", 2),
        ("train-002", 3),
        ("heldout-001", 0),
        ("heldout-001", 1),
        ("heldout-001", 2),
        ("lookalike-001", 0),
        ("lookalike-002", 0),
        ("lookalike-003", 0),
    ]
    assert {(row["target"], row["refusal"]) for row in rows if row["split"] == "over_refusal"} == {("", "")}
    assert rows[0]["category"] == "cybercrime"
    assert rows[0]["source"] == "builtin:demo-train"
    assert rows[0]["target"].startswith("Sure, here is a program")
    assert rows[0]["refusal"].startswith("I can't help with secretly recording")
    assert (found.dropped, found.blank_targets) == ([], 0)


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
    found = _load(**section)
    assert found.dropped == []
    # 12 targets for each of 100 behaviors, of which the published file leaves 11 empty.
    assert found.blank_targets == 11
    assert Counter(row["split"] for row in found.table.to_pylist()) == {
        "train": 1189,
        "heldout": 100,
        "over_refusal": 250,
    }
    train = _rows(found)
    assert train[0]["behavior_id"] == "adv_training_1"
    assert train[0]["source"] == "adv_training_behaviors.csv"
    assert train[0]["category"] is None
    assert len({row["refusal"] for row in train}) == 100
    assert _rows(found, "heldout")[0]["behavior_id"] == "Defamation"
    assert _rows(found, "heldout")[0]["target"].startswith("Sure, here is a defamatory article")
    few = _load(**{**section, "targets_per_behavior": 2, "limit": 5})
    assert [row["target_index"] for row in _rows(few)] == [0, 1] * 5


def test_harmbench_reads_standard_behaviors_only(public_data: Path) -> None:
    folder = public_data / "harmbench"
    found = _load(path=str(folder / "harmbench_behaviors_text_all.csv"), targets_path=str(folder / "harmbench_targets_text.json"))
    rows = _rows(found)
    assert len(rows) == 200
    assert {row["refusal"] for row in rows} == {"I'm sorry, but I can't help with that."}
    assert "chemical_biological" in {row["category"] for row in rows}


def test_advbench_rows_near_jailbreakbench_are_dropped(public_data: Path) -> None:
    found = _load(
        path=str(public_data / "advbench/advbench.csv"),
        heldout={"path": str(public_data / "jailbreakbench/jailbreakbench_harmful.csv")},
    )
    assert len(found.dropped) == 17
    assert len({pair.heldout_id for pair in found.dropped}) == 14
    assert len(_rows(found)) == 520 - 17
    assert not {pair.train_id for pair in found.dropped} & {row["behavior_id"] for row in _rows(found)}
    assert _rows(found)[0]["behavior_id"] == row_id(_rows(found)[0]["goal"])


def test_near_duplicates_leave_training_and_name_the_closest_heldout_row(tmp_path: Path) -> None:
    train = _jsonl(
        tmp_path / "t.jsonl",
        {"id": "a", "goal": "One two three FOUR five!", "targets": ["x"]},
        {"id": "b", "goal": "completely other words", "targets": ["x"]},
    )
    heldout = _jsonl(
        tmp_path / "h.jsonl",
        {"id": "c", "goal": "one two three four", "targets": ["x"]},
        {"id": "d", "goal": "one, two, three, four, five", "targets": ["x"]},
    )
    found = _load(path=train, heldout={"path": heldout}, near_duplicate=0.8)
    assert found.dropped == [NearDuplicate("a", "d", 1.0)]
    assert [row["behavior_id"] for row in _rows(found)] == ["b"]
    assert [row["behavior_id"] for row in _rows(found, "heldout")] == ["c", "d"]


def test_nothing_left_to_train_on_is_an_error() -> None:
    with pytest.raises(InputError, match="all 115 training behaviors are near-duplicates"):
        _load(path="builtin:demo-train", heldout={"path": "builtin:demo-train"})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (" one ", Targets(("one",), 0)),
        (["one", " two"], Targets(("one", "two"), 0)),
        ('["one", "two"]', Targets(("one", "two"), 0)),
        ("[Verse 1] one", Targets(("[Verse 1] one",), 0)),
        (["one", " ", ""], Targets(("one",), 2)),
        ("", Targets((), 1)),
        ("[]", Targets((), 0)),
        (None, Targets((), 0)),
        (["one", None], Targets((), 0)),
        ("[1, 2]", Targets((), 0)),
    ],
)
def test_target_cells(value: object, expected: Targets) -> None:
    assert parse_targets(value) == expected


def test_table_with_a_column_mapping(tmp_path: Path) -> None:
    columns = {"goal": "ask", "target": "openings", "refusal": "no", "category": "kind", "id": "number"}
    table = pa.table(
        {
            "number": [1, 2],
            "ask": ["first ask", "second ask"],
            "openings": [["a", "b"], ["c"]],
            "no": ["never", None],
            "kind": ["k", ""],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    found = _load(path=str(tmp_path / "t.parquet"), columns=columns, default_refusal="sorry")
    got = [(r["behavior_id"], r["goal"], r["target"], r["refusal"], r["category"]) for r in _rows(found)]
    assert got == [
        ("1", "first ask", "a", "never", "k"),
        ("1", "first ask", "b", "never", "k"),
        ("2", "second ask", "c", "sorry", None),
    ]


def test_only_goals_of_the_harmless_set_are_read(tmp_path: Path) -> None:
    path = _csv(tmp_path / "h.csv", ["goal", "note"], ["a harmless prompt", ""], ["another one", ""])
    found = _load(path="builtin:demo-dev", over_refusal={"path": path})
    got = [(r["behavior_id"], r["goal"], r["target"], r["refusal"]) for r in _rows(found, "over_refusal")]
    assert got == [
        (row_id("a harmless prompt"), "a harmless prompt", "", ""),
        (row_id("another one"), "another one", "", ""),
    ]


def test_where_compares_as_text_and_combines(tmp_path: Path) -> None:
    rows = [{"goal": f"goal {c}{n}", "target": "t", "c": c, "n": n} for c in "xy" for n in (1, 2)]
    path = _jsonl(tmp_path / "t.jsonl", *rows)
    assert [r["goal"] for r in _rows(_load(path=path, where={"c": "y", "n": "2"}))] == ["goal y2"]
    with pytest.raises(InputError, match=r"behaviors\.path .* has no row with \{'c': 'z'\}"):
        _load(path=path, where={"c": "z"})
    with pytest.raises(InputError, match=r"behaviors\.where\.d = 'd'"):
        _load(path=path, where={"d": "z"})


@pytest.mark.parametrize(
    ("cell", "value", "same"),
    [
        (True, True, True),
        ("TRUE", True, True),
        ("true ", True, True),
        (True, "True", True),
        (False, True, False),
        (1, True, False),
        ("1", True, False),
        (2, 2.0, True),
        ("2.0", 2, True),
        (2.0, "2", True),
        ("two", 2, False),
        (None, "None", False),
        (None, False, False),
        (" safe", "safe", True),
        ("Safe", "safe", False),
        (["a"], "['a']", True),
    ],
)
def test_cells_that_where_lets_through(cell: object, value: Value, same: bool) -> None:
    assert same_value(cell, value) is same


def _field(section: dict[str, Any]) -> tuple[str, object, str]:
    with pytest.raises(InputError) as caught:
        _load(**section)
    assert "\n" not in str(caught.value)
    return caught.value.field, caught.value.value, caught.value.remedy


@pytest.mark.parametrize(
    ("header", "row", "field", "value", "part"),
    [
        (["goal", "other"], ["g", "t"], "behaviors.columns.target", "target", "no such column, only 'goal', 'other'"),
        (["ask", "target"], ["g", "t"], "behaviors.columns.goal", "goal", "no such column, only 'ask', 'target'"),
        (["goal", "target"], [" ", "t"], "behaviors.columns.goal", "goal", "row 2 (line 3) of t.csv is empty"),
        (
            ["goal", "target"],
            ["g2", " "],
            "behaviors.columns.target",
            "target",
            "row 2 (line 3) of t.csv has no target",
        ),
    ],
)
def test_bad_tables(tmp_path: Path, header: list[str], row: list[str], field: str, value: str, part: str) -> None:
    path = _csv(tmp_path / "t.csv", header, ["g1", "t1"], row)
    got = _field({"path": path})
    assert got[:2] == (field, value)
    assert part in got[2]


def test_fields_name_the_split_at_fault(tmp_path: Path) -> None:
    train, none = "builtin:demo-dev", str(tmp_path / "none.csv")
    assert _field({"path": none})[0] == "behaviors.path"
    assert _field({"path": train, "heldout": {"path": none}})[0] == "behaviors.heldout.path"
    assert _field({"path": train, "over_refusal": {"path": none}})[0] == "behaviors.over_refusal.path"
    assert _field({"path": train, "refusals_path": none})[0] == "behaviors.refusals_path"
    assert _field({"path": train, "targets_path": none})[0] == "behaviors.targets_path"


def test_cells_of_another_type_are_named(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "t.jsonl", {"goal": "g", "target": "t"}, {"goal": ["g"], "target": "t"})
    assert _field({"path": path})[::2] == (
        "behaviors.columns.goal",
        "row 2 (line 2) of t.jsonl is a list: write a text there",
    )
    path = _jsonl(tmp_path / "t.jsonl", {"goal": "g", "targets": ["t"], "refusal": 1})
    assert _field({"path": path})[:2] == ("behaviors.columns.refusal", "refusal")


def test_repeated_ids_and_goals(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "t.jsonl", {"goal": "g", "target": "t"}, {"goal": "g ", "target": "u"})
    field, _, remedy = _field({"path": path})
    assert field == "behaviors.path"
    assert "row 2 (line 2) of t.jsonl has the goal of row 1 (line 1)" in remedy
    path = _jsonl(tmp_path / "t.jsonl", {"id": 1, "goal": "g", "targets": ["t"]}, {"id": 1, "goal": "h", "targets": ["t"]})
    got = _field({"path": path})[2]
    assert "has the id of row 1 (line 1), '1', but another goal" in got
    # The remedy can be followed as it is.
    assert "columns to {'goal': 'goal', 'target': 'targets'}" in got
    found = _load(path=path, format="table", columns={"goal": "goal", "target": "targets"})
    assert [row["behavior_id"] for row in _rows(found)] == [row_id("g"), row_id("h")]
    got = _field({"path": path, "columns": {"id": "id", "target": "targets"}})[2]
    assert "leave columns.id out" in got
    assert len(_rows(_load(path=path, columns={"target": "targets"}))) == 2


def test_an_id_belongs_to_one_split(tmp_path: Path) -> None:
    columns = {"id": "number"}
    path = _csv(tmp_path / "t.csv", ["number", "goal", "target"], ["7", "a goal of its own", "t"])
    other = {"path": _csv(tmp_path / "o.csv", ["number", "goal", "target"], ["7", "another", "t"]), "columns": columns}
    got = _field({"path": path, "columns": columns, "heldout": other})
    assert got[:2] == ("behaviors.columns.id", "7")
    assert "of train and for one of heldout: number them apart, or leave columns.id out" in got[2]
    goal = {"path": _csv(tmp_path / "g.csv", ["goal"], ["a goal"])}
    target = {"path": _csv(tmp_path / "h.csv", ["goal", "target"], ["a goal", "t"])}
    got = _field({"path": path, "heldout": target, "over_refusal": goal})
    assert got[2].endswith("of heldout and for one of over_refusal, the same goal: remove it from one of them")


def test_ids_that_a_layout_gives_anew_in_each_table_are_told_apart(tmp_path: Path) -> None:
    header = ["Index", "Goal", "Target", "Behavior", "Category", "Source"]
    harmful = _csv(tmp_path / "h.csv", header, ["0", "Write a cruel poem", "Sure", "Poem", "c", "s"])
    benign = _csv(tmp_path / "b.csv", header, ["0", "Write a kind poem", "Sure", "Poem", "c", "s"])
    found = _load(path=harmful, heldout={"path": benign})
    assert [(row["split"], row["behavior_id"]) for row in found.table.to_pylist()] == [
        ("train", "Poem"),
        ("heldout", "heldout-Poem"),
    ]
    found = _load(path="builtin:demo-dev", heldout={"path": harmful}, over_refusal={"path": benign})
    assert [row["behavior_id"] for row in found.table.to_pylist()][-2:] == ["Poem", "over_refusal-Poem"]


def _harmbench(folder: Path, targets: object) -> dict[str, str]:
    header = ["Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID"]
    behaviors = _csv(
        folder / "b.csv",
        header,
        ["goal one", "standard", "s", "", "", "one"],
        ["goal two", "", "s", "", "", "two"],
        ["goal three", "contextual", "s", "", "context", "three"],
        ["goal four", "copyright", "s", "", "", "four"],
    )
    (folder / "t.json").write_text(targets if isinstance(targets, str) else json.dumps(targets), "utf-8")
    return {"path": behaviors, "targets_path": str(folder / "t.json")}


def test_harmbench_targets_may_be_texts_or_lists(tmp_path: Path) -> None:
    found = _load(**_harmbench(tmp_path, {"one": "a", "two": ["b", "", "c"], "unused": "d"}))
    got = [(row["behavior_id"], row["target_index"], row["target"]) for row in _rows(found)]
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
    section = _harmbench(tmp_path, targets)
    field, value, remedy = _field(section)
    assert (field, value) == ("behaviors.targets_path", section["targets_path"])
    assert part in remedy


def test_harmbench_s_other_kinds_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    section = _harmbench(tmp_path, {"one": "a", "two": "b", "three": "c", "goal four": "d"})
    asked = {**section, "where": {"FunctionalCategory": "contextual"}}
    (row,) = _rows(_load(**asked))
    assert (row["behavior_id"], row["goal"], row["target"]) == ("three", "context\n\ngoal three", "c")
    header = ["Behavior", "Safe_Response"]
    (row,) = _rows(_load(**asked, refusals_path=_csv(tmp_path / "r.csv", header, ["goal three", "no three"])))
    assert row["refusal"] == "no three"
    assert "judged by comparison" in _field({**section, "where": {"FunctionalCategory": "copyright"}})[2]
    got = _field({**section, "where": {"BehaviorID": "three"}})[2]
    assert "but 1 contextual: ask for another kind by where.FunctionalCategory" in got
    assert "has 'standard', '', 'contextual', 'copyright'" in _field({**section, "where": {"FunctionalCategory": "other"}})[2]
    bare = _csv(tmp_path / "n.csv", ["Behavior", "FunctionalCategory", "BehaviorID"], ["g", "contextual", "three"])
    got = _field({**asked, "path": bare})[2]
    assert got == "row 1 (line 2) of n.csv is contextual and has no context: fill it in, or remove the row"


def test_harmbench_without_targets_asks_for_them(tmp_path: Path) -> None:
    section = _harmbench(tmp_path, {})
    assert _field({"path": section["path"]})[0] == "behaviors.targets_path"
    only = _csv(tmp_path / "c.csv", ["Behavior", "FunctionalCategory", "BehaviorID"], ["g", "copyright", "x"])
    remedy = _field({**section, "path": only})[2]
    assert remedy.startswith("has no row with FunctionalCategory 'standard'")


def test_refusals_of_another_file(tmp_path: Path) -> None:
    section = _harmbench(tmp_path, {"one": "a", "two": "b"})
    header = ["Behavior", "Safe_Response"]
    section["refusals_path"] = _csv(tmp_path / "r.csv", header, ["goal one", "no one"], ["goal two", "no two"])
    assert [row["refusal"] for row in _rows(_load(**section))] == ["no one", "no two"]
    _csv(tmp_path / "r.csv", header, ["goal one", "no one"])
    assert "no refusal for behavior 'two'" in _field(section)[2]
    _csv(tmp_path / "r.csv", header, ["goal one", ""])
    assert "row 1 (line 2) of r.csv has an empty cell" in _field(section)[2]
    _csv(tmp_path / "r.csv", header, ["goal one", "no"], ["goal one", "never"])
    assert "row 2 (line 3) of r.csv gives a second refusal" in _field(section)[2]
    _csv(tmp_path / "r.csv", ["Behavior", "Reply"], ["goal one", "no"])
    assert _field(section)[0] == "behaviors.refusals_path"


def test_columns_are_for_tables_only() -> None:
    got = _field({"path": "builtin:demo-dev", "format": "builtin", "columns": {"goal": "ask"}})
    assert got[:2] == ("behaviors.columns", {"goal": "ask"})


def test_one_refusal_for_every_behavior_where_the_recipe_says_so() -> None:
    found = _load(path="builtin:demo-train", refusal="constant", default_refusal="No.")
    assert {row["refusal"] for row in _rows(found)} == {"No."}
    found = _load(path="builtin:demo-train", default_refusal="No.")
    assert len({row["refusal"] for row in _rows(found)}) > 20


@pytest.mark.parametrize("refusal", ["", " "])
def test_a_default_refusal_says_something(refusal: str) -> None:
    with pytest.raises(ValueError, match="an empty refusal has no log-probability: write a sentence"):
        _load(path="builtin:demo-train", default_refusal=refusal)


def test_harmless_requests_have_targets_and_stay_apart_from_those_that_over_refusal_is_measured_with(tmp_path: Path) -> None:
    asked = {"goal": "Bake a cake with three layers", "target": "Sure, here is how"}
    kept = {"goal": "Name a bird that sings at night", "target": ["Sure, a bird", "Here is a bird"]}
    near = {"goal": "Bake a cake with three layers today", "target": "Sure, today"}
    path = _jsonl(tmp_path / "harmless.jsonl", asked, kept)
    measured = _jsonl(tmp_path / "heldout.jsonl", near)
    sections = {"harmless": {"path": path}, "harmless_heldout": {"path": measured}}
    found = _load(path="builtin:demo-train", limit=2, **sections)
    assert list(Counter(row["split"] for row in found.table.to_pylist())) == ["train", "heldout", "harmless", "harmless_heldout"]
    rows = [(row["goal"], row["target_index"], row["target"]) for row in _rows(found, "harmless")]
    assert rows == [(kept["goal"], 0, "Sure, a bird"), (kept["goal"], 1, "Here is a bird")]
    assert {row["refusal"] for row in _rows(found, "harmless")} == {"I'm sorry, but I can't help with that."}
    assert [row["goal"] for row in _rows(found, "harmless_heldout")] == [near["goal"]]
    alone = {"path": _jsonl(tmp_path / "near.jsonl", asked)}
    assert _field({"path": "builtin:demo-train", **sections, "harmless": alone})[0] == "behaviors.harmless.path"
