from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dat_ray.config.training import RetainConfig
from dat_ray.data.ids import row_id
from dat_ray.data.retain import RetainRow, load_retain, read_retain
from dat_ray.errors import InputError


def _jsonl(path: Path, rows: Sequence[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def test_rows_keep_order_and_missing_responses_are_none(tmp_path: Path) -> None:
    path = _jsonl(
        tmp_path / "r.jsonl",
        [{"prompt": " p1 ", "response": " a "}, {"prompt": "p2"}, {"prompt": "p3", "response": ""}, {"prompt": "p4"}],
    )
    rows = load_retain(RetainConfig(path=path, limit=3))
    assert rows == [
        RetainRow(row_id("p1", "a", 0), "p1", "a", "r.jsonl"),
        RetainRow(row_id("p2", None, 0), "p2", None, "r.jsonl"),
        RetainRow(row_id("p3", None, 0), "p3", None, "r.jsonl"),
    ]


def test_repeated_rows_get_ids_of_their_own(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "r.jsonl", [{"prompt": "p"}, {"prompt": "p"}, {"prompt": "p", "response": "x"}])
    rows = load_retain(RetainConfig(path=path))
    assert [row.prompt for row in rows] == ["p", "p", "p"]
    assert len({row.retain_id for row in rows}) == 3


def test_given_ids_are_kept_and_extra_columns_ignored(tmp_path: Path) -> None:
    table = pa.table({"id": [7, 8], "prompt": ["p", "q"], "messages": [[{"role": "user"}], []]})
    pq.write_table(table, tmp_path / "r.parquet")
    rows = load_retain(RetainConfig(path=str(tmp_path / "r.parquet")))
    assert [(row.retain_id, row.prompt, row.response) for row in rows] == [("7", "p", None), ("8", "q", None)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "x", "id": 1}], "no column 'prompt'"),
        ([{"prompt": "p"}, {"prompt": " "}], r"row 2 \(line 2\) of r\.jsonl has no 'prompt'"),
        ([{"prompt": "p"}, {"response": "a"}], r"row 2 \(line 2\) of r\.jsonl has no 'prompt'"),
        ([{"prompt": ["p"]}], "has no 'prompt'"),
        ([{"prompt": "p", "response": 3}], "'response' that is no text"),
        ([{"prompt": "p", "id": "a"}, {"prompt": "q", "id": "a"}], r"row 2 \(line 2\) and row 1 \(line 1\)"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_retain(RetainConfig(path=_jsonl(tmp_path / "r.jsonl", rows)))
    assert caught.value.field == "training.retain.path"


def test_builtin_set() -> None:
    rows = load_retain(RetainConfig(path="builtin:demo-retain", limit=2))
    assert [row.retain_id for row in rows] == ["retain-001", "retain-002"]
    assert {(row.response, row.source) for row in rows} == {(None, "builtin:demo-retain")}


def test_a_chat_gives_its_first_turn(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "name a bird"}, {"role": "assistant", "content": "A robin."}]
    more = [{"role": "system", "content": "be kind"}, *chat, {"role": "user", "content": "and one more"}]
    long = [{"role": "user", "content": "x" * 50}, chat[1]]
    table = pa.table({"prompt": ["a", "b", "c"], "messages": [more, long, chat]})
    pq.write_table(table, tmp_path / "r.parquet")
    cfg = RetainConfig(path=str(tmp_path / "r.parquet"), layout="messages", max_prompt_characters=49, limit=2)
    rows = load_retain(cfg)
    assert [(row.prompt, row.response) for row in rows] == [("name a bird", "A robin.")] * 2
    assert len({row.retain_id for row in rows}) == 2
    with pytest.raises(InputError, match=r"none of its 1 rows can be used; row 1 of r.parquet holds no user message"):
        pq.write_table(pa.table({"messages": [chat[:1]]}), tmp_path / "r.parquet")
        load_retain(cfg)
    with pytest.raises(InputError, match=r"no prompt of .* is that short"):
        pq.write_table(pa.table({"messages": [long]}), tmp_path / "r.parquet")
        load_retain(cfg)


def _json(path: Path, rows: Sequence[object]) -> RetainConfig:
    path.write_text(json.dumps(rows), "utf-8")
    return RetainConfig(path=str(path))


def _user(text: object) -> dict[str, object]:
    return {"role": "user", "content": text}


def _assistant(text: object) -> dict[str, object]:
    return {"role": "assistant", "content": text}


def test_instructions_take_their_input_along(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Name a bird", "input": "", "output": "A robin."},
        {"instruction": "Put it in the plural", "input": "bird", "output": ""},
        {"instruction": "", "input": "x", "output": "y"},
    ]
    found = read_retain(_json(tmp_path / "r.json", rows))
    assert [(row.prompt, row.response) for row in found.rows] == [
        ("Name a bird", "A robin."),
        ("Put it in the plural\n\nbird", None),
    ]
    assert found.odd == {"has no 'instruction', or an input that is no text": 1}
    rows = [{"instruction": "Name a bird", "context": "In Europe.", "response": "A robin.", "category": "open_qa"}]
    assert read_retain(_json(tmp_path / "r.json", rows)).rows[0].prompt == "Name a bird\n\nIn Europe."


@pytest.mark.parametrize(
    ("chat", "found"),
    [
        ([_user("a"), _assistant("b"), _user("c"), _assistant("d")], ("a", "b")),
        ([_assistant("Hello"), _user("a"), _assistant("b")], ("a", "b")),
        ([{"role": "system", "content": "be kind"}, _assistant("Hello"), _user("a"), _assistant("b")], ("a", "b")),
        ([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], ("a", "b")),
        ([_user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), _assistant(["c"])], ("a\nb", "c")),
        (json.dumps([_user("a"), _assistant("b")]), ("a", "b")),
        ([_user("a"), _user("b"), _assistant("c")], "holds no user message that the assistant answers next"),
        (
            [_user("a"), {"role": "tool", "content": "b"}, _assistant("c")],
            "holds no user message that the assistant answers next",
        ),
        ([_user("a"), _assistant(None)], "holds a message that is empty or more than text"),
        ([_user([{"type": "image_url"}]), _assistant("b")], "holds a message that is empty or more than text"),
        ([], "holds no user message that the assistant answers next"),
        ("a: b", "holds no list of messages"),
        (None, "holds no list of messages"),
    ],
)
def test_turns_of_chats(tmp_path: Path, chat: object, found: tuple[str, str] | str) -> None:
    rows = [{"conversations": chat}, {"conversations": [_user("last"), _assistant("one")]}]
    read = read_retain(_json(tmp_path / "r.json", rows))
    if isinstance(found, str):
        assert [row.prompt for row in read.rows] == ["last"]
        assert read.odd == {found: 1}
    else:
        assert [(row.prompt, row.response) for row in read.rows] == [found, ("last", "one")]
        assert read.odd == {}
