"""Tables are read back as they were, whichever version of the program wrote them, and damage is seen in every column."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from dat_ray.data import schemas
from dat_ray.data.parquet_options import parquet_options
from dat_ray.data.shards import ShardFile, describe_shard, read_file, read_table, write_file, write_manifest, write_shard
from dat_ray.errors import ShardError

# How version 0.1 wrote every table.
OPTIONS_0_1: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
TABLES = {name: schema for name, schema in vars(schemas).items() if isinstance(schema, pa.Schema)}
WORDS = ["", "Sure, here is", "naïve 日本語 \U0001f600", "line\nline\r\n\0", "the same " * 400]


def filled(schema: pa.Schema, rows: int = 64) -> pa.Table:
    """A table with nulls wherever they are allowed, and values that are hard to store."""
    draw = np.random.default_rng(len(schema))

    def value(kind: pa.DataType) -> Any:
        if pa.types.is_list(kind):
            return [value(kind.value_type) for _ in range(draw.integers(3))]
        if pa.types.is_string(kind):
            return WORDS[draw.integers(len(WORDS))]
        if pa.types.is_floating(kind):
            return float(draw.choice([0.0, -0.0, 1e-310, -np.inf, draw.normal()]))
        return bool(draw.integers(2)) if pa.types.is_boolean(kind) else int(draw.integers(-(2**31), 2**31))

    columns = [
        pa.array([None if field.nullable and draw.random() < 0.3 else value(field.type) for _ in range(rows)], field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def bits(table: pa.Table) -> list[Any]:
    """Schema, metadata and values, so that -0.0 is not 0.0."""
    return [table.schema.to_string(show_field_metadata=True), table.schema.metadata, repr(table.to_pylist())]


@pytest.mark.parametrize("name", TABLES)
def test_every_table_reads_as_one_that_version_0_1_wrote(tmp_path, name: str) -> None:
    table = filled(TABLES[name])
    pq.write_table(table, tmp_path / "old.parquet", **OPTIONS_0_1)
    write_file(str(tmp_path / "new.parquet"), table)
    old, new = read_file(str(tmp_path / "old.parquet")), read_file(str(tmp_path / "new.parquet"))
    assert bits(new) == bits(old)
    assert new.schema.equals(table.schema)
    assert repr(new.to_pylist()) == repr(table.to_pylist())
    # Readers that know nothing of this program.
    assert bits(pq.read_table(tmp_path / "new.parquet")) == bits(old)


def test_a_type_that_parquet_does_not_know_is_kept(tmp_path) -> None:
    table = pa.table({"x": pa.array(["a"], pa.large_string()), "y": pa.array([1], pa.duration("s")), "z": pa.nulls(1)})
    write_file(str(tmp_path / "x.parquet"), table)
    assert bits(read_file(str(tmp_path / "x.parquet"))) == bits(table)


def test_a_folder_that_version_0_1_began_is_gone_on_with(tmp_path) -> None:
    old, new = filled(schemas.CANDIDATES), filled(schemas.CANDIDATES, 7)
    pq.write_table(old, tmp_path / "a.parquet", **OPTIONS_0_1)
    files = [describe_shard(str(tmp_path), "a.parquet"), write_shard(str(tmp_path), "b.parquet", new)]
    write_manifest(str(tmp_path), files, "f00d")
    assert bits(read_table(str(tmp_path)).combine_chunks()) == bits(pa.concat_tables([old, new]).combine_chunks())


def test_the_plan_s_writer_takes_the_options(tmp_path) -> None:
    """Ray Data writes through pyarrow.dataset, which has the same options under another roof."""
    table = filled(schemas.CANDIDATES)
    ours = write_shard(str(tmp_path), "ours.parquet", table)
    options = ds.ParquetFileFormat().make_write_options(**parquet_options(schemas.CANDIDATES, table.num_rows))
    ds.write_dataset(table, tmp_path / "theirs", format="parquet", file_options=options)
    theirs = describe_shard(str(tmp_path / "theirs"), "part-0.parquet")
    assert (theirs.rows, theirs.sha256) == (ours.rows, ours.sha256)


@pytest.mark.parametrize("name", ["CANDIDATES", "ATTEMPTS"])
def test_a_flipped_bit_is_seen_in_every_column(tmp_path, name: str) -> None:
    path = tmp_path / "x.parquet"
    write_file(str(path), filled(TABLES[name]))
    whole = path.read_bytes()
    group = pq.ParquetFile(path).metadata.row_group(0)
    for column in map(group.column, range(group.num_columns)):
        # The last byte of a column is one of its last page.
        at = column.data_page_offset + column.total_compressed_size - 1
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ShardError, match="not a whole parquet file"):
            read_file(str(path))


def test_files_are_no_larger_than_those_of_version_0_1(tmp_path) -> None:
    """Sixty-four rows of prompts and completions that no compression is lucky with, among columns that repeat."""
    draw = np.random.default_rng(0)
    letters = np.frombuffer(b"etaoin shrdlu cmfwyp", np.uint8)
    table = pa.Table.from_pylist(
        [
            {**dict.fromkeys(schemas.CANDIDATES.names), "candidate_id": f"{row:016x}", "behavior_id": "b", "goal": "g" * 60}
            | dict.fromkeys(("target_index", "round", "sample_index", "prompt_tokens", "seed"), row)
            | {"target": "t" * 60, "refusal": "No.", "sampler": "s" * 16}
            | {name: draw.choice(letters, size).tobytes().decode() for name, size in (("prompt", 280), ("completion", 1100))}
            for row in range(64)
        ],
        schema=schemas.CANDIDATES,
    )
    pq.write_table(table, tmp_path / "old.parquet", **OPTIONS_0_1)
    write_file(str(tmp_path / "new.parquet"), table)
    assert (tmp_path / "new.parquet").stat().st_size < (tmp_path / "old.parquet").stat().st_size


def test_a_manifest_entry_is_of_the_file_s_bytes(tmp_path) -> None:
    written = write_shard(str(tmp_path), "x.parquet", filled(schemas.ATTEMPTS))
    assert written == describe_shard(str(tmp_path), "x.parquet") == ShardFile("x.parquet", 64, written.sha256)
