from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from dat_ray.data.error_limit import ErrorLimit
from dat_ray.data.shards import read_table
from dat_ray.errors import DatError, InputError
from dat_ray.evaluation.store import Chunk, ShardStore

SCHEMA = pa.schema([("id", pa.string()), ("value", pa.int32()), ("error", pa.string())])


def store(root: Path, rate: float = 0.5, total: int = 4) -> ShardStore:
    return ShardStore(str(root), SCHEMA, "id", ErrorLimit(total, rate), shard_rows=2)


def row(identifier: str, value: int | None = 1, error: str | None = None) -> dict:
    return {"id": identifier, "value": value, "error": error}


def test_chunks_cover_everything_once_in_order(tmp_path: Path) -> None:
    cut = store(tmp_path).cut("base-direct", list("abcde"), [1, 2, 3, 4, 5])
    assert [chunk.name for chunk in cut] == [f"part-base-direct-{n:05}.parquet" for n in range(3)]
    assert {chunk.stem for chunk in cut} == {f"base-direct-{n:05}" for n in range(3)}
    assert [chunk.ids for chunk in cut] == [["a", "b"], ["c", "d"], ["e"]]
    assert [chunk.items for chunk in cut] == [[1, 2], [3, 4], [5]]


def test_what_is_stored_is_not_missing_any_more(tmp_path: Path) -> None:
    writer = store(tmp_path)
    first, second = writer.cut("x", list("abcd"), [1, 2, 3, 4])
    assert writer.load_done([first, second]) == [first, second]
    writer.put(second, [row("c"), row("d", None, "too long")])
    reader = store(tmp_path)
    assert reader.load_done([first, second]) == [first]
    reader.put(first, [row("a", 7), row("b")])
    reader.publish("mark")
    stored = read_table(str(tmp_path), fingerprint="mark").to_pylist()
    assert [one["id"] for one in stored] == ["a", "b", "c", "d"]
    assert stored == reader.rows()


def test_a_shard_of_other_rows_is_refused(tmp_path: Path) -> None:
    store(tmp_path).put(Chunk("part-x-00000.parquet", ["a"], [1]), [row("a")])
    with pytest.raises(InputError, match="other settings"):
        store(tmp_path).load_done([Chunk("part-x-00000.parquet", ["b"], [1])])


def test_too_many_errors_stop_before_the_shard_is_written(tmp_path: Path) -> None:
    writer = store(tmp_path, rate=0.25)
    cut = writer.cut("x", list("abcd"), [1, 2, 3, 4])
    writer.put(cut[0], [row("a"), row("b", None, "first failure")])
    with pytest.raises(DatError, match="second failure"):
        writer.put(cut[1], [row("c", None, "second failure"), row("d")])
    resumed = store(tmp_path, rate=0.25)
    assert resumed.load_done(cut) == [cut[1]]
    # The failure that is stored still counts.
    with pytest.raises(DatError, match="2 rows failed"):
        resumed.put(cut[1], [row("c", None, "again"), row("d")])
