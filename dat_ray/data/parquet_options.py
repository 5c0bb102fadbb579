"""How tables are written as parquet: for many small files, each of which is written once and read whole."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pyarrow as pa

from dat_ray.data.schemas import LONG_TEXT

# Rows up to which short values have LZ4. In a shard of candidates that saves 0.6 to 0.7 ms of writing and reading,
# of 2.6 ms at 64 rows and of 3.9 ms at 512; it costs 1% of the bytes at 64 rows, 3% at 256, and 50% in 900 behaviors.
FEW_ROWS = 256
# Types that parquet itself knows: a file of these alone reads as it was without a copy of its Arrow schema.
_PLAIN = frozenset({pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.bool_()})


def parquet_options(schema: pa.Schema, rows: int) -> dict[str, Any]:
    """The options of pyarrow's parquet writers for a file.

    A shard has tens of columns and tens of rows, so that most of its time goes into what a column costs whatever it holds:

    - zstd sets up a context for each column. Where rows are few, it is only for columns of long text; LZ4 is for all others.
    - A dictionary is a further page in each column. Compression takes care of values that repeat.
    - Statistics are for readers that skip row groups, and no reader here does. Of a column of text they are two whole texts
      in the footer, a seventh of a shard of 64 rows.
    - Pages carry checksums, since a shard has no sha256 anywhere until its manifest is written.

    Args:
        schema: of the table.
        rows: of the file, about.
    """
    return dict(_options(schema, "lz4" if rows <= FEW_ROWS else "zstd"))


@lru_cache  # looking at tens of fields takes as long as writing several of the columns
def _options(schema: pa.Schema, short: str) -> dict[str, Any]:
    return {
        "compression": {_leaf(field): "zstd" if field.name in LONG_TEXT else short for field in schema},
        "use_dictionary": False,
        "write_statistics": False,
        "write_page_checksum": True,
        "store_schema": any(field.type not in _PLAIN for field in schema),
    }


def _leaf(field: pa.Field) -> str:
    """Path of the parquet column that holds a field's values."""
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else str(field.name)
