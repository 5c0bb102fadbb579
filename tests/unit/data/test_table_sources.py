from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dat_ray.data.shards import write_manifest, write_shard
from dat_ray.data.table_sources import HubSpec, builtin_names, open_source, parse_hub_spec, read_json
from dat_ray.errors import InputError

ROWS = [{"goal": "first, quoted", "n": "1"}, {"goal": "second\nline", "n": "2"}]


def _write(folder: Path, kind: str) -> Path:
    path = folder / f"table.{kind}"
    if kind == "csv":
        path.write_bytes(b'\xef\xbb\xbfgoal,n\r\n"first, quoted",1\r\n\r\n"second\nline",2\r\n')
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", "utf-8")
    elif kind == "json":
        path.write_text(json.dumps(ROWS), "utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    source = open_source(str(_write(tmp_path, kind)), "f")
    assert (source.name, source.columns) == (f"table.{kind}", ("goal", "n"))
    assert [row.values for row in source.rows(["goal", "n"])] == ROWS
    assert [row.values for row in source.rows(["n"])] == [{"n": "1"}, {"n": "2"}]


def test_places_count_rows_and_lines(tmp_path: Path) -> None:
    places = {kind: [row.place for row in open_source(str(_write(tmp_path, kind)), "f").rows(["n"])] for kind in ("csv",)}
    assert places == {"csv": ["row 1 (line 2)", "row 2 (line 5)"]}
    path = tmp_path / "gap.jsonl"
    path.write_text('{"a": 1}\n\n{"b": "\u2028"}\n', "utf-8")
    source = open_source(str(path), "f")
    assert source.columns == ("a", "b")
    assert [row[:2] for row in source.rows(["a", "b"])] == [
        ("row 1 (line 1)", {"a": 1, "b": None}),
        ("row 2 (line 3)", {"a": None, "b": "\u2028"}),
    ]


def test_folder_joins_its_files_in_order_of_name(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("goal\nthree\n")
    (tmp_path / "a.csv").write_text("goal\none\ntwo\n")
    (tmp_path / "notes.md").write_text("no table")
    (tmp_path / "_old.csv").write_text("goal\nhidden\n")
    rows = list(open_source(str(tmp_path), "f").rows(["goal"]))
    assert [row.values["goal"] for row in rows] == ["one", "two", "three"]
    assert rows[2].place == "b.csv row 1 (line 2)"


def test_folder_with_a_manifest_gives_the_files_it_names(tmp_path: Path) -> None:
    named = write_shard(str(tmp_path), "a.parquet", pa.table({"goal": ["kept"]}))
    write_shard(str(tmp_path), "b.parquet", pa.table({"goal": ["unfinished"]}))
    write_manifest(str(tmp_path), [named], "0" * 16)
    assert [row.values for row in open_source(str(tmp_path), "f").rows(["goal"])] == [{"goal": "kept"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "the file is empty"),
        ("t.csv", b"goal,n\n", "holds no rows"),
        ("t.csv", b"goal,goal\na,b\n", "two columns have the same name"),
        ("t.csv", b"goal,n\na,1\nb,c,2\n", r"row 2 \(line 3\) has 3 cells, the header 2"),
        ("t.csv", b'goal,n\n"a,1\n', "not a CSV table at line 2"),
        ("t.csv", b"goal\n\xff\n", "not UTF-8 at byte 5"),
        ("t.jsonl", b'{"goal": 1}\n{"goal": \n', r"row 2 \(line 2\) is not JSON"),
        ("t.jsonl", b"[1]\n", r"row 1 \(line 1\) is a JSON list"),
        ("t.json", b'{"goal": "x"}', "holds one object with the keys 'goal'"),
        ("t.json", b"[]", "holds no rows"),
        ("t.parquet", b"PAR1", "not a parquet file"),
        ("t.doc", b"goal", "unknown kind of file"),
    ],
)
def test_bad_files_name_field_value_and_remedy(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        open_source(str(path), "behaviors.path")
    assert (caught.value.field, caught.value.value) == ("behaviors.path", str(path))
    assert "\n" not in str(caught.value)


def test_missing_paths_and_useless_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        open_source(str(tmp_path / "none.csv"), "f")
    with pytest.raises(InputError, match=r"f = .*names no storage"):
        open_source("nowhere://bucket/t.csv", "f")
    with pytest.raises(InputError, match="holds no table"):
        open_source(str(tmp_path), "f")
    (tmp_path / "a.csv").write_text("goal\nx\n")
    (tmp_path / "b.csv").write_text("other\nx\n")
    with pytest.raises(InputError, match=r"b\.csv and a\.csv have different columns"):
        open_source(str(tmp_path), "f")
    with pytest.raises(InputError, match="no such file"):
        read_json(str(tmp_path / "none.json"), "f")


def test_unknown_builtin_lists_the_known_ones() -> None:
    assert builtin_names() == [
        "demo-dev",
        "demo-harmless",
        "demo-harmless-dev",
        "demo-harmless-heldout",
        "demo-heldout",
        "demo-heldout-inpainted",
        "demo-heldout-rewrites",
        "demo-lookalikes",
        "demo-lookalikes-dev",
        "demo-retain",
        "demo-train",
        "demo-train-paraphrases",
    ]
    with pytest.raises(
        InputError,
        match=r"demo-dev, demo-harmless, .*demo-heldout-rewrites, .*demo-retain, demo-train, demo-train-paraphrases",
    ):
        open_source("builtin:demo", "f")


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("hf:owner/name", HubSpec("owner/name", None, "train")),
        ("hf:owner/na.me-2:test", HubSpec("owner/na.me-2", None, "test")),
        ("hf:owner/name/config:harmful", HubSpec("owner/name", "config", "harmful")),
        ("hf:owner/name@0123abcd/config:test", HubSpec("owner/name", "config", "test", "0123abcd")),
        ("hf:owner/name:train[:100]", HubSpec("owner/name", None, "train[:100]")),
    ],
)
def test_hub_specification(spec: str, parsed: HubSpec) -> None:
    assert parse_hub_spec(spec, "f") == parsed


@pytest.mark.parametrize("spec", ["hf:", "hf:name", "hf:owner/name:", "hf:owner/", "hf:a/b/c/d"])
def test_bad_hub_specification(spec: str) -> None:
    with pytest.raises(InputError, match="write hf:OWNER/NAME"):
        parse_hub_spec(spec, "f")


def test_hub_without_the_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"dat-ray\[hub\]"):
        open_source("hf:owner/name", "behaviors.path")


def test_hub_out_of_reach_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, config: str | None, split: str, revision: str | None) -> None:
        raise ConnectionError(f"offline: {name} {config} {split}\nsecond line")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(InputError, match="ConnectionError: offline: owner/name cfg test") as caught:
        open_source("hf:owner/name/cfg:test", "behaviors.path")
    assert "second line" not in str(caught.value)


def test_hub_loads_a_data_set_from_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    (tmp_path / "owner" / "name").mkdir(parents=True)
    lines = "".join(json.dumps({"goal": f"goal {i}", "targets": ["a", "b"]}) + "\n" for i in range(3))
    (tmp_path / "owner" / "name" / "test.jsonl").write_text(lines)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = open_source("hf:owner/name:test[:2]", "f")
    assert source.columns == ("goal", "targets")
    assert [row[:2] for row in source.rows(["targets", "goal"])] == [
        ("row 1", {"goal": "goal 0", "targets": ["a", "b"]}),
        ("row 2", {"goal": "goal 1", "targets": ["a", "b"]}),
    ]
    with pytest.raises(InputError, match="cannot be loaded"):
        open_source("hf:owner/name:nosplit", "f")
