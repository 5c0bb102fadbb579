from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dat_ray.config.data import Value
from dat_ray.data.behavior_layouts import same_value
from dat_ray.data.behaviors import NearDuplicate, Targets, parse_targets
from dat_ray.data.ids import row_id
from dat_ray.data.schemas import BEHAVIORS
from dat_ray.errors import InputError
from tests.unit.data.behavior_files import csv_file, field_of, harmbench, jsonl_file, load, rows_of


def test_builtin_splits_in_one_table() -> None:
    found = load(path="builtin:demo-train", limit=2, over_refusal={"path": "builtin:demo-lookalikes", "limit": 3})
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


def test_advbench_rows_near_jailbreakbench_are_dropped(public_data: Path) -> None:
    found = load(
        path=str(public_data / "advbench/advbench.csv"),
        heldout={"path": str(public_data / "jailbreakbench/jailbreakbench_harmful.csv")},
    )
    assert len(found.dropped) == 17
    assert len({pair.heldout_id for pair in found.dropped}) == 14
    assert len(rows_of(found)) == 520 - 17
    assert not {pair.train_id for pair in found.dropped} & {row["behavior_id"] for row in rows_of(found)}
    assert rows_of(found)[0]["behavior_id"] == row_id(rows_of(found)[0]["goal"])


def test_near_duplicates_leave_training_and_name_the_closest_heldout_row(tmp_path: Path) -> None:
    train = jsonl_file(
        tmp_path / "t.jsonl",
        {"id": "a", "goal": "One two three FOUR five!", "targets": ["x"]},
        {"id": "b", "goal": "completely other words", "targets": ["x"]},
    )
    heldout = jsonl_file(
        tmp_path / "h.jsonl",
        {"id": "c", "goal": "one two three four", "targets": ["x"]},
        {"id": "d", "goal": "one, two, three, four, five", "targets": ["x"]},
    )
    found = load(path=train, heldout={"path": heldout}, near_duplicate=0.8)
    assert found.dropped == [NearDuplicate("a", "d", 1.0)]
    assert [row["behavior_id"] for row in rows_of(found)] == ["b"]
    assert [row["behavior_id"] for row in rows_of(found, "heldout")] == ["c", "d"]


def test_nothing_left_to_train_on_is_an_error() -> None:
    with pytest.raises(InputError, match="all 115 training behaviors are near-duplicates"):
        load(path="builtin:demo-train", heldout={"path": "builtin:demo-train"})


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
    found = load(path=str(tmp_path / "t.parquet"), columns=columns, default_refusal="sorry")
    got = [(r["behavior_id"], r["goal"], r["target"], r["refusal"], r["category"]) for r in rows_of(found)]
    assert got == [
        ("1", "first ask", "a", "never", "k"),
        ("1", "first ask", "b", "never", "k"),
        ("2", "second ask", "c", "sorry", None),
    ]


def test_only_goals_of_the_harmless_set_are_read(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "h.csv", ["goal", "note"], ["a harmless prompt", ""], ["another one", ""])
    found = load(path="builtin:demo-dev", over_refusal={"path": path})
    got = [(r["behavior_id"], r["goal"], r["target"], r["refusal"]) for r in rows_of(found, "over_refusal")]
    assert got == [
        (row_id("a harmless prompt"), "a harmless prompt", "", ""),
        (row_id("another one"), "another one", "", ""),
    ]


def test_where_compares_as_text_and_combines(tmp_path: Path) -> None:
    rows = [{"goal": f"goal {c}{n}", "target": "t", "c": c, "n": n} for c in "xy" for n in (1, 2)]
    path = jsonl_file(tmp_path / "t.jsonl", *rows)
    assert [r["goal"] for r in rows_of(load(path=path, where={"c": "y", "n": "2"}))] == ["goal y2"]
    with pytest.raises(InputError, match=r"behaviors\.path .* has no row with \{'c': 'z'\}"):
        load(path=path, where={"c": "z"})
    with pytest.raises(InputError, match=r"behaviors\.where\.d = 'd'"):
        load(path=path, where={"d": "z"})


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
    path = csv_file(tmp_path / "t.csv", header, ["g1", "t1"], row)
    got = field_of({"path": path})
    assert got[:2] == (field, value)
    assert part in got[2]


def test_fields_name_the_split_at_fault(tmp_path: Path) -> None:
    train, none = "builtin:demo-dev", str(tmp_path / "none.csv")
    assert field_of({"path": none})[0] == "behaviors.path"
    assert field_of({"path": train, "heldout": {"path": none}})[0] == "behaviors.heldout.path"
    assert field_of({"path": train, "over_refusal": {"path": none}})[0] == "behaviors.over_refusal.path"
    assert field_of({"path": train, "refusals_path": none})[0] == "behaviors.refusals_path"
    assert field_of({"path": train, "targets_path": none})[0] == "behaviors.targets_path"


def test_cells_of_another_type_are_named(tmp_path: Path) -> None:
    path = jsonl_file(tmp_path / "t.jsonl", {"goal": "g", "target": "t"}, {"goal": ["g"], "target": "t"})
    assert field_of({"path": path})[::2] == (
        "behaviors.columns.goal",
        "row 2 (line 2) of t.jsonl is a list: write a text there",
    )
    path = jsonl_file(tmp_path / "t.jsonl", {"goal": "g", "targets": ["t"], "refusal": 1})
    assert field_of({"path": path})[:2] == ("behaviors.columns.refusal", "refusal")


def test_repeated_ids_and_goals(tmp_path: Path) -> None:
    path = jsonl_file(tmp_path / "t.jsonl", {"goal": "g", "target": "t"}, {"goal": "g ", "target": "u"})
    field, _, remedy = field_of({"path": path})
    assert field == "behaviors.path"
    assert "row 2 (line 2) of t.jsonl has the goal of row 1 (line 1)" in remedy
    path = jsonl_file(tmp_path / "t.jsonl", {"id": 1, "goal": "g", "targets": ["t"]}, {"id": 1, "goal": "h", "targets": ["t"]})
    got = field_of({"path": path})[2]
    assert "has the id of row 1 (line 1), '1', but another goal" in got
    # The remedy can be followed as it is.
    assert "columns to {'goal': 'goal', 'target': 'targets'}" in got
    found = load(path=path, format="table", columns={"goal": "goal", "target": "targets"})
    assert [row["behavior_id"] for row in rows_of(found)] == [row_id("g"), row_id("h")]
    got = field_of({"path": path, "columns": {"id": "id", "target": "targets"}})[2]
    assert "leave columns.id out" in got
    assert len(rows_of(load(path=path, columns={"target": "targets"}))) == 2


def test_an_id_belongs_to_one_split(tmp_path: Path) -> None:
    columns = {"id": "number"}
    path = csv_file(tmp_path / "t.csv", ["number", "goal", "target"], ["7", "a goal of its own", "t"])
    other = {"path": csv_file(tmp_path / "o.csv", ["number", "goal", "target"], ["7", "another", "t"]), "columns": columns}
    got = field_of({"path": path, "columns": columns, "heldout": other})
    assert got[:2] == ("behaviors.columns.id", "7")
    assert "of train and for one of heldout: number them apart, or leave columns.id out" in got[2]
    goal = {"path": csv_file(tmp_path / "g.csv", ["goal"], ["a goal"])}
    target = {"path": csv_file(tmp_path / "h.csv", ["goal", "target"], ["a goal", "t"])}
    got = field_of({"path": path, "heldout": target, "over_refusal": goal})
    assert got[2].endswith("of heldout and for one of over_refusal, the same goal: remove it from one of them")


def test_ids_that_a_layout_gives_anew_in_each_table_are_told_apart(tmp_path: Path) -> None:
    header = ["Index", "Goal", "Target", "Behavior", "Category", "Source"]
    harmful = csv_file(tmp_path / "h.csv", header, ["0", "Write a cruel poem", "Sure", "Poem", "c", "s"])
    benign = csv_file(tmp_path / "b.csv", header, ["0", "Write a kind poem", "Sure", "Poem", "c", "s"])
    found = load(path=harmful, heldout={"path": benign})
    assert [(row["split"], row["behavior_id"]) for row in found.table.to_pylist()] == [
        ("train", "Poem"),
        ("heldout", "heldout-Poem"),
    ]
    found = load(path="builtin:demo-dev", heldout={"path": harmful}, over_refusal={"path": benign})
    assert [row["behavior_id"] for row in found.table.to_pylist()][-2:] == ["Poem", "over_refusal-Poem"]


def test_refusals_of_another_file(tmp_path: Path) -> None:
    section = harmbench(tmp_path, {"one": "a", "two": "b"})
    header = ["Behavior", "Safe_Response"]
    section["refusals_path"] = csv_file(tmp_path / "r.csv", header, ["goal one", "no one"], ["goal two", "no two"])
    assert [row["refusal"] for row in rows_of(load(**section))] == ["no one", "no two"]
    csv_file(tmp_path / "r.csv", header, ["goal one", "no one"])
    assert "no refusal for behavior 'two'" in field_of(section)[2]
    csv_file(tmp_path / "r.csv", header, ["goal one", ""])
    assert "row 1 (line 2) of r.csv has an empty cell" in field_of(section)[2]
    csv_file(tmp_path / "r.csv", header, ["goal one", "no"], ["goal one", "never"])
    assert "row 2 (line 3) of r.csv gives a second refusal" in field_of(section)[2]
    csv_file(tmp_path / "r.csv", ["Behavior", "Reply"], ["goal one", "no"])
    assert field_of(section)[0] == "behaviors.refusals_path"


def test_columns_are_for_tables_only() -> None:
    got = field_of({"path": "builtin:demo-dev", "format": "builtin", "columns": {"goal": "ask"}})
    assert got[:2] == ("behaviors.columns", {"goal": "ask"})


def test_one_refusal_for_every_behavior_where_the_recipe_says_so() -> None:
    found = load(path="builtin:demo-train", refusal="constant", default_refusal="No.")
    assert {row["refusal"] for row in rows_of(found)} == {"No."}
    found = load(path="builtin:demo-train", default_refusal="No.")
    assert len({row["refusal"] for row in rows_of(found)}) > 20


@pytest.mark.parametrize("refusal", ["", " "])
def test_a_default_refusal_says_something(refusal: str) -> None:
    with pytest.raises(ValueError, match="an empty refusal has no log-probability: write a sentence"):
        load(path="builtin:demo-train", default_refusal=refusal)


def test_harmless_requests_have_targets_and_stay_apart_from_those_that_over_refusal_is_measured_with(tmp_path: Path) -> None:
    asked = {"goal": "Bake a cake with three layers", "target": "Sure, here is how"}
    kept = {"goal": "Name a bird that sings at night", "target": ["Sure, a bird", "Here is a bird"]}
    near = {"goal": "Bake a cake with three layers today", "target": "Sure, today"}
    path = jsonl_file(tmp_path / "harmless.jsonl", asked, kept)
    measured = jsonl_file(tmp_path / "heldout.jsonl", near)
    sections = {"harmless": {"path": path}, "harmless_heldout": {"path": measured}}
    found = load(path="builtin:demo-train", limit=2, **sections)
    assert list(Counter(row["split"] for row in found.table.to_pylist())) == ["train", "heldout", "harmless", "harmless_heldout"]
    rows = [(row["goal"], row["target_index"], row["target"]) for row in rows_of(found, "harmless")]
    assert rows == [(kept["goal"], 0, "Sure, a bird"), (kept["goal"], 1, "Here is a bird")]
    assert {row["refusal"] for row in rows_of(found, "harmless")} == {"I'm sorry, but I can't help with that."}
    assert [row["goal"] for row in rows_of(found, "harmless_heldout")] == [near["goal"]]
    alone = {"path": jsonl_file(tmp_path / "near.jsonl", asked)}
    assert field_of({"path": "builtin:demo-train", **sections, "harmless": alone})[0] == "behaviors.harmless.path"
