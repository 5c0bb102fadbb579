"""Rows of an input table, wherever it lies: a file, a folder, a builtin set or a Hugging Face data set.

Nothing here knows what the columns mean; that is `dat_ray.data.behaviors` and `dat_ray.data.retain`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from dat_ray.data.public import PUBLIC, public_file
from dat_ray.data.shards import has_manifest, join, open_filesystem, read_table
from dat_ray.errors import InputError

BUILTIN = "builtin:"
HUB = "hf:"
_SUFFIXES = (".csv", ".jsonl", ".ndjson", ".json", ".parquet")
_HUB_SPEC = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<config>[\w.-]+))?(?::(?P<split>.+))?")


class Row(NamedTuple):
    """A row and where it stands, such as ``row 3 (line 4)``, counted from 1."""

    place: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """An opened table.

    Attributes:
        name: what messages and the tables' `source` column call it; free of folder names.
        columns: names of its columns.
        rows: yields the rows, given the columns that are wanted; absent cells are None.
    """

    name: str
    columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], Iterator[Row]]


class HubSpec(NamedTuple):
    """The parts of ``hf:OWNER/NAME[@REVISION][/CONFIG][:SPLIT]``; ``name`` is ``OWNER/NAME``."""

    name: str
    config: str | None
    split: str
    revision: str | None = None


def open_source(spec: str, field: str) -> Source:
    """Opens a table.

    Args:
        spec: path or URI of a CSV, JSONL, JSON (a list of objects) or parquet file, a folder of such files,
            ``builtin:NAME``, ``public:NAME``, or ``hf:OWNER/NAME[@REVISION][/CONFIG][:SPLIT]``.
        field: the recipe's field that holds ``spec``, for messages.

    Raises:
        InputError: it cannot be read, or has no rows.
    """
    if spec.startswith(BUILTIN):
        return _builtin(spec, field)
    if spec.startswith(HUB):
        return _hub(spec, field)
    filesystem, path = _locate(spec, field)
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        return _folder(filesystem, path, spec, field)
    return _file(filesystem, path, spec, field)


def builtin_names() -> list[str]:
    """Names of the sets that ship with the package."""
    folder = resources.files("dat_ray.data") / "builtin"
    return sorted(item.name.removesuffix(".jsonl").replace("_", "-") for item in folder.iterdir() if item.name.endswith(".jsonl"))


def parse_hub_spec(spec: str, field: str) -> HubSpec:
    """Splits ``hf:OWNER/NAME[@REVISION][/CONFIG][:SPLIT]``; the split is ``train`` unless given."""
    match = _HUB_SPEC.fullmatch(spec)
    if match is None:
        raise InputError(field, spec, "write hf:OWNER/NAME[@REVISION][/CONFIG][:SPLIT], as in hf:OWNER/NAME:test")
    return HubSpec(match["name"], match["config"], match["split"] or "train", match["revision"])


def read_json(spec: str, field: str) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: it is missing, or not JSON.
    """
    filesystem, path = _locate(spec, field)
    return _decode_json(_text(_read(filesystem, path, spec, field), spec, field), spec, field)


def _locate(spec: str, field: str) -> tuple[pafs.FileSystem, str]:
    try:
        filesystem, path = open_filesystem(str(public_file(spec, field)) if spec.startswith(PUBLIC) else spec)
        kind = filesystem.get_file_info(path).type
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(field, spec, f"cannot be reached ({_first_line(error)}): check the path and the access") from error
    if kind == pafs.FileType.NotFound:
        raise InputError(field, spec, "no such file or folder: check the path, which starts at the working directory")
    return filesystem, path


def _read(filesystem: pafs.FileSystem, path: str, spec: str, field: str) -> bytes:
    try:
        with filesystem.open_input_file(path) as stream:
            return stream.read()
    except OSError as error:
        raise InputError(field, spec, f"cannot be read ({_first_line(error)}): check that it is a readable file") from error


def _file(filesystem: pafs.FileSystem, path: str, spec: str, field: str) -> Source:
    name = path.rsplit("/", 1)[-1]
    suffix = next((end for end in _SUFFIXES if name.lower().endswith(end)), None)
    if suffix is None:
        raise InputError(field, spec, f"unknown kind of file: use one of {', '.join(_SUFFIXES)}")
    data = _read(filesystem, path, spec, field)
    if suffix == ".parquet":
        try:
            table = pq.read_table(pa.BufferReader(data))
        except (pa.ArrowException, OSError) as error:
            raise InputError(field, spec, f"not a parquet file ({_first_line(error)}): write it again") from error
        return _from_arrow(name, table, spec, field)
    text = _text(data, spec, field)
    if suffix == ".csv":
        rows = _csv_rows(text, spec, field)
    elif suffix == ".json":
        rows = _json_rows(text, spec, field)
    else:
        rows = _jsonl_rows(text, spec, field)
    return _from_rows(name, rows, spec, field)


def _folder(filesystem: pafs.FileSystem, path: str, spec: str, field: str) -> Source:
    """All files of a folder as one table; with a manifest, the files that it names."""
    name = path.rsplit("/", 1)[-1]
    if has_manifest(spec):
        return _from_arrow(name, read_table(spec), spec, field)
    found = [info for info in filesystem.get_file_info(pafs.FileSelector(path)) if info.is_file]
    files = sorted(
        info.base_name
        for info in found
        if info.base_name.lower().endswith(_SUFFIXES) and not info.base_name.startswith((".", "_"))
    )
    if not files:
        raise InputError(field, spec, f"the folder holds no table: put one of {', '.join(_SUFFIXES)} there")
    parts = [_file(filesystem, join(path, file), join(spec, file), field) for file in files]
    odd = next((part for part in parts if set(part.columns) != set(parts[0].columns)), None)
    if odd is not None:
        raise InputError(field, spec, f"{odd.name} and {parts[0].name} have different columns: keep one table in a folder")

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        for part in parts:
            for place, values in part.rows(columns):
                yield Row(f"{part.name} {place}", values)

    return Source(name, parts[0].columns, rows)


def _builtin(spec: str, field: str) -> Source:
    name = spec.removeprefix(BUILTIN)
    if name not in builtin_names():
        raise InputError(field, spec, f"no such builtin set: choose one of {', '.join(builtin_names())}")
    resource = resources.files("dat_ray.data") / "builtin" / f"{name.replace('-', '_')}.jsonl"
    return _from_rows(spec, _jsonl_rows(resource.read_text("utf-8"), spec, field), spec, field)


def _hub(spec: str, field: str) -> Source:
    hub = parse_hub_spec(spec, field)
    try:
        import datasets
    except ImportError as error:
        raise InputError(field, spec, "needs the `datasets` package: install the extra `dat-ray[hub]`") from error
    try:
        data = datasets.load_dataset(hub.name, hub.config, split=hub.split, revision=hub.revision)
    # The library lets errors of several network stacks through, which have no common base class.
    except Exception as error:
        remedy = "check name, config, split and the network, or download the table and give its path"
        raise InputError(field, spec, f"cannot be loaded ({_first_line(error)}): {remedy}") from error
    if not len(data):
        raise InputError(field, spec, "the split is empty: choose another one")

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        for number, values in enumerate(data.select_columns(list(columns)), start=1):
            yield Row(f"row {number}", values)

    return Source(spec, tuple(data.column_names), rows)


def _from_arrow(name: str, table: pa.Table, spec: str, field: str) -> Source:
    if not table.num_rows:
        raise InputError(field, spec, "holds no rows: give a table with at least one")

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        number = 0
        for batch in table.select(list(columns)).to_batches():
            for values in batch.to_pylist():
                number += 1
                yield Row(f"row {number}", values)

    return Source(name, tuple(table.column_names), rows)


def _from_rows(name: str, found: list[Row], spec: str, field: str) -> Source:
    if not found:
        raise InputError(field, spec, "holds no rows: give a table with at least one")
    # A JSON row may lack a key; columns keep the order in which they first appear.
    columns = tuple(dict.fromkeys(column for row in found for column in row.values))

    def rows(wanted: Sequence[str]) -> Iterator[Row]:
        for place, values in found:
            yield Row(place, {column: values.get(column) for column in wanted})

    return Source(name, columns, rows)


def _csv_rows(text: str, spec: str, field: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise InputError(field, spec, "two columns have the same name: rename one in the header")
        for cells in reader:
            if not cells:
                continue
            place = f"row {len(rows) + 1} (line {reader.line_num})"
            if len(cells) != len(header):
                problem = f"{place} has {len(cells)} cells, the header {len(header)}"
                raise InputError(field, spec, f"{problem}: quote cells that contain commas")
            rows.append(Row(place, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise InputError(field, spec, f"not a CSV table at line {reader.line_num} ({error}): check its quotes") from error
    return rows


def _jsonl_rows(text: str, spec: str, field: str) -> list[Row]:
    rows: list[Row] = []
    # Not splitlines, which also breaks at separators that JSON strings may contain.
    for line_number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"row {len(rows) + 1} (line {line_number})"
            rows.append(Row(place, _object(_decode_json(line, spec, field, place), spec, field, place)))
    return rows


def _json_rows(text: str, spec: str, field: str) -> list[Row]:
    content = _decode_json(text, spec, field)
    if not isinstance(content, list):
        raise InputError(field, spec, f"holds a {type(content).__name__}: a table in JSON is a list of objects")
    places = [f"row {number}" for number in range(1, len(content) + 1)]
    return [Row(place, _object(item, spec, field, place)) for place, item in zip(places, content, strict=True)]


def _object(value: Any, spec: str, field: str, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(field, spec, f"{place} is a JSON {type(value).__name__}: write an object there")
    return value


def _decode_json(text: str, spec: str, field: str, place: str | None = None) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f"{place} is" if place else "is"
        raise InputError(field, spec, f"{where} not JSON ({_first_line(error)}): correct it") from error


def _text(data: bytes, spec: str, field: str) -> str:
    try:
        # Spreadsheet programs put a byte-order mark first, which is no part of a column's name.
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(field, spec, f"not UTF-8 at byte {error.start}: save it as UTF-8") from error
    if not text.strip():
        raise InputError(field, spec, "the file is empty: give a table with at least one row")
    return text


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
