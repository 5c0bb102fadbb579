"""Whatever bytes a file holds, a reader gives rows or says in one line what is wrong; nothing else comes out."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dat_ray.data import table_files as tables
from dat_ray.data.table_files import COMPRESSED, KINDS, Origin, read_json_file, read_table_file
from dat_ray.errors import InputError

ORIGIN = Origin("behaviors.path", "file")
_pieces = st.sampled_from(
    [
        *(b"goal,target\n", b'"', b"\r", b"\n", b",", b";", b"\t", b"sep=;\n", b"\xff\xfe", b"\xef\xbb\xbf", b"\0", b"\xc3"),
        *(b'{"goal": "a"}', b"[", b"]", b"{", b"}", b"NaN", b"\\ud800", b'"\\ud83d"', b"null", b"1e999", b"<html"),
        *(b"PAR1", b"PK\x03\x04", b"BZh9", b"\x1f\x8b", b"\xfd7zXZ\x00", b"version https://git-lfs.github.com/spec/v1"),
    ]
)
_contents = st.one_of(st.binary(max_size=40), st.lists(_pieces, max_size=6).map(b"".join), st.text(max_size=40).map(str.encode))
_packers: list[Callable[[bytes], bytes]] = [bytes, gzip.compress, bz2.compress, lzma.compress]
_packed = st.builds(lambda pack, content: pack(content), st.sampled_from(_packers), _contents)


def _refusal_or(read: Callable[[], Any]) -> Any:
    """What is read, or the InputError; any other exception is a failure."""
    try:
        return read()
    except InputError as error:
        return error


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(KINDS), st.sampled_from(["", *COMPRESSED]), _packed)
@example(".json", "", b"[" * 100_000)
@example(".jsonl", "", b'{"a": ' + b"9" * 5000 + b"}")
@example(".csv", "", b"a" * 200_000 + b"\n" + b"b" * 200_000 + b"\n")
def test_any_bytes(kind: str, compression: str, data: bytes) -> None:
    found = _refusal_or(lambda: read_table_file(f"table{kind}{compression}", data, ORIGIN))
    if isinstance(found, InputError):
        assert found.field == "behaviors.path"
        assert "\n" not in str(found)
        return
    rows = list(found.rows(found.columns))
    assert rows
    for row in rows:
        assert list(row.values) == list(found.columns)
        # What is read can be written: no half of a surrogate pair.
        for value in row.values.values():
            str(value).encode()


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(_packed)
def test_any_bytes_of_a_json_file(data: bytes) -> None:
    found = _refusal_or(lambda: read_json_file(data, ORIGIN))
    assert not isinstance(found, InputError) or "\n" not in str(found)


def test_a_small_file_that_unpacks_to_more_than_fits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = gzip.compress(b"goal\n" + b"a" * 4090 + b"\n")
    monkeypatch.setattr(tables, "MOST_UNPACKED_BYTES", 4096)
    assert next(iter(read_table_file("t.csv", data, ORIGIN).rows(["goal"]))).values == {"goal": "a" * 4090}
    monkeypatch.setattr(tables, "MOST_UNPACKED_BYTES", 4095)
    with pytest.raises(InputError, match="unpacks to more than"):
        read_table_file("t.csv", data, ORIGIN)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_file_that_is_cut_anywhere_gives_no_rows(compress) -> None:
    whole = compress(b"goal,target\n" + b"".join(b"goal %d,target\n" % number for number in range(50)))
    assert len(list(read_table_file("t.csv", whole, ORIGIN).rows(["goal"]))) == 50
    for length in range(8, len(whole)):
        with pytest.raises(InputError, match="damaged or cut short"):
            read_table_file("t.csv", whole[:length], ORIGIN)
