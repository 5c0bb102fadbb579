"""Rows of one file, in the kinds in which people save tables: CSV, JSON, JSON lines, parquet, a plain list of texts.

The content decides where the name is wrong and the content leaves no doubt: the delimiter of a CSV file, lines or a list in
JSON, compression, the byte-order marks of UTF-8 and UTF-16. What is no table at all is named for what it is.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dat_ray.errors import InputError
from dat_ray.json_text import JsonError, parse_json

KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt")
COMPRESSED = (".gz", ".bz2", ".xz")
# The column of a file without columns: a text a line.
TEXT = "(line)"

_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_DECOMPRESSORS: dict[bytes, Callable[[io.BytesIO], io.BufferedIOBase]] = {
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
# A small file can unpack to more than the memory holds.
MOST_UNPACKED_BYTES = 2 << 30
# How files begin that are taken for tables, and what to do about it.
_NO_TABLES = {
    b"version https://git-lfs.github.com/spec/": "is a git-lfs pointer, not the data: fetch the file itself with `git lfs pull`",
    b"PK\x03\x04": "is a zip archive or an Excel workbook: unpack it, or save the sheet as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "is a workbook of an old Excel: save the sheet as CSV in UTF-8",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd: unpack it, or compress it by gzip",
}
_WEB_PAGE = re.compile(rb"\s*<(?:!doctype\s+html|html)\b", re.IGNORECASE)
# What data frames write as text where nothing is.
_ABSENT = frozenset({"nan", "NaN", "<NA>"})
_COLUMN_WORDS = frozenset({"goal", "target", "prompt", "response", "behavior", "category", "id", "text", "label", "completion"})
_NAMES_SHOWN, _NAME_LENGTH = 12, 40


class PlacedRow(NamedTuple):
    """A row and where it stands, such as ``row 3 (line 4)``, counted from 1.

    An empty text in a CSV table is an absent one, for such a table can say nothing else; in JSON it is a text that says nothing.
    """

    place: str
    values: dict[str, Any]
    empty_is_absent: bool = False


@dataclass(frozen=True)
class TableSource:
    """An opened table.

    Attributes:
        name: what messages and the tables' `source` column call it; free of folder names.
        columns: names of its columns.
        rows: yields the rows, given the columns that are wanted; absent cells are None, and so is NaN, as a number or a text.
    """

    name: str
    columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], Iterator[PlacedRow]]


@dataclass(frozen=True)
class Origin:
    """What a user wrote where to name a file, for messages."""

    field: str
    spec: str

    def bad(self, problem: str) -> InputError:
        """The error of a file that cannot be used; the problem ends with what to do."""
        return InputError(self.field, self.spec, problem)


def table_kind(name: str) -> str | None:
    """The suffix that says how a file is read, one of `KINDS`; None for others. Compression's suffix comes after it."""
    bare = name.lower()
    bare = next((bare.removesuffix(end) for end in COMPRESSED if bare.endswith(end)), bare)
    return next((kind for kind in KINDS if bare.endswith(kind)), None)


def listed(names: Sequence[str]) -> str:
    """Quoted names for a message: the first dozen, each shortened; a file without a header has texts for names."""
    quoted = [repr(name if len(name) <= _NAME_LENGTH else f"{name[:_NAME_LENGTH]}...") for name in names[:_NAMES_SHOWN]]
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(quoted) + more


def read_table_file(name: str, data: bytes, origin: Origin) -> TableSource:
    """The table in a file's bytes.

    Args:
        name: of the file; its suffix is one of `KINDS`, perhaps with one of `COMPRESSED`.
        data: its bytes.
        origin: for messages.

    Raises:
        InputError: another kind of file, damaged, in an encoding that cannot be told, or without rows.
    """
    kind = table_kind(name)
    if kind is None:
        raise origin.bad(f"unknown kind of file: use one of {', '.join(KINDS)}, each also with {', '.join(COMPRESSED)}")
    data = _unpacked(data, origin)
    if kind == ".parquet":
        try:
            table = pq.read_table(pa.BufferReader(data))
        except (pa.ArrowException, OSError) as error:
            raise origin.bad(f"not a parquet file ({first_line(error)}): write it again") from error
        return from_arrow(name, table, origin)
    text = _text(data, origin)
    if kind in (".csv", ".tsv"):
        rows = _csv_rows(text, "\t" if kind == ".tsv" else ",", origin)
    elif kind == ".txt":
        rows = _text_rows(text, origin)
    else:
        rows = _json_rows(text, kind != ".json", origin)
    return from_rows(name, rows, origin)


def read_json_file(data: bytes, origin: Origin) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: it is no JSON.
    """
    return _decode_json(_text(_unpacked(data, origin), origin), origin)


def from_arrow(name: str, table: pa.Table, origin: Origin) -> TableSource:
    """A source of an Arrow table.

    Raises:
        InputError: no rows, or two columns of one name.
    """
    if not table.num_rows:
        raise origin.bad("holds no rows: give a table with at least one")
    _check_names(table.column_names, origin)

    def rows(columns: Sequence[str]) -> Iterator[PlacedRow]:
        number = 0
        for batch in table.select(list(columns)).to_batches():
            for values in batch.to_pylist():
                number += 1
                yield PlacedRow(f"row {number}", {column: cell(value) for column, value in values.items()})

    return TableSource(name, tuple(table.column_names), rows)


def from_rows(name: str, read: list[PlacedRow], origin: Origin) -> TableSource:
    """A source of rows that are read already.

    Raises:
        InputError: there are none.
    """
    if not read:
        raise origin.bad("holds no rows: give a table with at least one")
    # A JSON row may lack a key; columns keep the order in which they first appear.
    columns = tuple(dict.fromkeys(column for row in read for column in row.values))

    def rows(wanted: Sequence[str]) -> Iterator[PlacedRow]:
        for row in read:
            yield row._replace(values={column: cell(row.values.get(column)) for column in wanted})

    return TableSource(name, columns, rows)


def cell(value: Any) -> Any:
    """A cell's value; None where a data frame had nothing and wrote NaN."""
    nan = value != value if isinstance(value, float) else isinstance(value, str) and value in _ABSENT
    return None if nan else value


def jsonl_rows(text: str, origin: Origin) -> list[PlacedRow]:
    """One JSON object a line; blank lines don't count.

    Raises:
        InputError: a line is no JSON object.
    """
    rows: list[PlacedRow] = []
    # Not splitlines, which also breaks at separators that JSON strings may contain.
    for line_number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"row {len(rows) + 1} (line {line_number})"
            rows.append(PlacedRow(place, _object(_decode_json(line, origin, place), origin, place)))
    return rows


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _unpacked(data: bytes, origin: Origin) -> bytes:
    """What a compressed file holds; the name may lie in both directions.

    Raises:
        InputError: cut short or damaged, or no table.
    """
    for start, decompress in _DECOMPRESSORS.items():
        if data.startswith(start):
            try:
                data = decompress(io.BytesIO(data)).read(MOST_UNPACKED_BYTES + 1)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise origin.bad(f"cannot be unpacked, damaged or cut short ({first_line(error)}): fetch it again") from error
            if len(data) > MOST_UNPACKED_BYTES:
                raise origin.bad(
                    f"unpacks to more than {MOST_UNPACKED_BYTES >> 30} GiB: unpack it, and keep the part that is needed"
                )
            break
    for start, problem in _NO_TABLES.items():
        if data.startswith(start):
            raise origin.bad(problem)
    if _WEB_PAGE.match(data):
        raise origin.bad("is a web page, not the table it shows: download the raw file")
    return data


def _text(data: bytes, origin: Origin) -> str:
    if data.startswith(b"PAR1"):
        raise origin.bad("is a parquet file: name it .parquet")
    # Spreadsheet programs put a byte-order mark first, which is no part of a column's name.
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise origin.bad(_encoding_problem(data, error)) from error
    if "\0" in text:
        raise origin.bad("holds zero bytes, as UTF-16 without a byte-order mark does: save it as UTF-8")
    if not text.strip():
        raise origin.bad("the file is empty: give a table with at least one row")
    return text


def _encoding_problem(data: bytes, error: UnicodeDecodeError) -> str:
    """Says which encoding it may be: one byte a letter stands alone among ASCII in Western languages, but not in others."""
    line = data.count(b"\n", 0, error.start) + 1
    problem = f"not {error.encoding.upper()} at byte {error.start} (line {line})"
    if error.reason == "unexpected end of data":
        return f"{problem}, where the file ends inside a character: it is cut short, fetch it again"
    single = re.search(rb"[\x80-\xff]{2}", data) is None
    looks, name = ("windows-1252 or latin-1", "WINDOWS-1252") if single else ("an older or damaged encoding", "ENCODING")
    return f"{problem}, {looks} by its look: save it as UTF-8, as `iconv -f {name} -t UTF-8` does"


def _check_names(names: Sequence[str], origin: Origin) -> None:
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise origin.bad(f"two columns have the same name {twice!r}: rename one in the header")


# csv's limit belongs to the whole process: one reader at a time raises it, and puts it back for everybody else.
_csv_limit = threading.Lock()


@contextmanager
def _cells_up_to(size: int) -> Iterator[None]:
    """Lets a cell be as long as its file, not only 128 KB."""
    with _csv_limit:
        before = csv.field_size_limit()
        csv.field_size_limit(max(before, size))
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _delimiter(header: str, usual: str) -> str:
    """The usual one where it stands in the header outside quotes; else the one that stands there most often."""
    bare = re.sub(r'"[^"]*"', "", header)
    commonest = max(_DELIMITERS, key=bare.count)
    return usual if usual in bare or commonest not in bare else commonest


def _csv_rows(text: str, usual: str, origin: Origin) -> list[PlacedRow]:
    first = text.lstrip("\r\n").splitlines()[0]
    # Excel's own first line, which names the delimiter.
    excel = re.fullmatch(r"sep=(.)", first)
    delimiter = excel[1] if excel else _delimiter(first, usual)
    # A space after each comma of the header: then the cells have one too, before their quotes.
    spaced = f"{delimiter} " in first
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=spaced, strict=True)
    rows: list[PlacedRow] = []
    header: list[str] = []
    with _cells_up_to(len(text)):
        try:
            for cells in reader:
                if not any(value.strip() for value in cells) or (excel and reader.line_num == 1):
                    continue
                if not header:
                    header = [name.strip() for name in cells]
                    _check_names([name for name in header if name], origin)
                    continue
                place = f"row {len(rows) + 1} (line {reader.line_num})"
                # Spreadsheets fill rows up with empty cells.
                while len(cells) > len(header) and not cells[-1].strip():
                    cells.pop()
                if len(cells) != len(header):
                    problem = f"{place} has {len(cells)} cells, the header {len(header)}"
                    raise origin.bad(f"{problem}: quote cells that contain {_DELIMITERS.get(delimiter, repr(delimiter))}")
                rows.append(PlacedRow(place, {name: value for name, value in zip(header, cells, strict=True) if name}, True))
        except csv.Error as error:
            remedy = "check its quotes, which inside a cell are doubled"
            raise origin.bad(f"not a CSV table at line {reader.line_num} ({error}): {remedy}") from error
    return rows


def _text_rows(text: str, origin: Origin) -> list[PlacedRow]:
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    first = lines[0][1]
    if first.startswith(("{", "[{")):
        raise origin.bad("is JSON: name it .jsonl, or .json")
    if {word.strip().lower() for word in re.split(r"[,;\t|]", first)} <= _COLUMN_WORDS:
        raise origin.bad(f"begins with names of columns ({first}), where a text file has one text a line: name it .csv")
    return [PlacedRow(f"line {number}", {TEXT: line}) for number, line in lines]


def _json_rows(text: str, lines: bool, origin: Origin) -> list[PlacedRow]:
    """A list of objects, or an object a line; `lines` says which of them the name promises."""
    start = text.lstrip()[:1]
    if lines and start != "[":
        return jsonl_rows(text, origin)
    try:
        content = parse_json(text, finite=False, limit=None)
    except JsonError:
        if lines or start == "{":
            return jsonl_rows(text, origin)
        content = _decode_json(text, origin)
    if lines and not any(isinstance(item, dict) for item in content):
        return jsonl_rows(text, origin)
    if not isinstance(content, list):
        raise origin.bad(_no_list(content))
    places = [f"row {number}" for number in range(1, len(content) + 1)]
    return [PlacedRow(place, _object(item, origin, place)) for place, item in zip(places, content, strict=True)]


def _no_list(content: Any) -> str:
    remedy = "a table in JSON is a list of objects, or has one object a line"
    if not isinstance(content, dict) or not content:
        return f"holds a {type(content).__name__}: {remedy}"
    inner = next(
        (key for key, value in content.items() if isinstance(value, list) and value and isinstance(value[0], dict)), None
    )
    if inner is not None:
        return f"holds one object, whose {inner!r} is a list of objects: {remedy}; where that list is the table, write it alone"
    if any(all(isinstance(value, kind) for value in content.values()) for kind in (list, dict)):
        return f"holds columns, {listed(list(content))}, not rows: {remedy}; pandas writes it with orient='records'"
    return f"holds one object with the keys {listed(list(content))}: {remedy}"


def _object(value: Any, origin: Origin, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise origin.bad(f"{place} is a JSON {type(value).__name__}: write an object there")
    return value


def _decode_json(text: str, origin: Origin, place: str | None = None) -> Any:
    try:
        return parse_json(text, finite=False, limit=None)
    except JsonError as error:
        raise origin.bad(f"{place} {error}: correct it" if place else f"{error}: correct it") from error
