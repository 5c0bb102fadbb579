"""Shards and the manifest that makes them readable.

A reader opens only files that `_manifest.json` names; the manifest is written last, by rename.
Works on any filesystem that pyarrow opens: a local path, s3://, gs://.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from dat_ray.data.parquet_options import parquet_options
from dat_ray.data.schemas import SCHEMA_VERSION
from dat_ray.data.storage import answers_of, open_uri
from dat_ray.errors import ShardError, StorageError, error_line, one_line
from dat_ray.json_text import parse_object

# Characters of a file's path below its folder: no stage writes one as long, and messages hold it.
LONGEST_PATH = 1000
MANIFEST = "_manifest.json"
_PARTIAL = re.compile(r"\.[0-9a-f]{16}\.partial$")
_LOCAL = pafs.LocalFileSystem()
# An absolute path that `Path` would write as it is: one slash before each part, and no part that is a single dot.
_SHORT = re.compile(r"(/(?!\.(/|$))[^/]+)+")
_guards: list[tuple[str, Callable[[], None]]] = []


@dataclass(frozen=True)
class ShardFile:
    """One file of a table: path relative to its folder, row count, sha256 of its bytes."""

    path: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a finished folder holds."""

    schema_version: int
    fingerprint: str
    files: tuple[ShardFile, ...]

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def open_filesystem(root: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem and the path on it of a local path or URI.

    Of an S3-compatible store `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` gives the address, as for other programs.

    Raises:
        InputError: a URI of no kind of storage, or none that can be parsed.
        UnreachableStorage: the storage cannot be reached, as where its host is not known.
    """
    if "://" in root:
        return open_uri(root)
    return _LOCAL, root if _SHORT.fullmatch(root) else str(Path(root).absolute())


def join(root: str, *parts: str) -> str:
    """Joins path parts below a local path or a URI."""
    return posixpath.join(root, *parts)


def exists(path: str) -> bool:
    """Whether a file or folder is there.

    Raises:
        UnreachableStorage: the storage does not say.
    """
    fs, inner = open_filesystem(path)
    with answers_of(path):
        return bool(fs.get_file_info(inner).type != pafs.FileType.NotFound)


def list_folder(root: str) -> list[pafs.FileInfo]:
    """What lies directly in a folder; nothing where it is missing.

    Raises:
        UnreachableStorage: the storage does not say.
    """
    fs, inner = open_filesystem(root)
    with answers_of(root):
        return list(fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True)))


def is_file(path: str) -> bool:
    """Whether a file is there, and no folder."""
    fs, inner = open_filesystem(path)
    try:
        return bool(fs.get_file_info(inner).type == pafs.FileType.File)
    except OSError:  # a name that the storage does not take
        return False


def read_bytes(path: str) -> bytes:
    """A whole file.

    Raises:
        UnreachableStorage: it is gone, or the storage does not hand it over.
    """
    fs, inner = open_filesystem(path)
    with answers_of(path), fs.open_input_file(inner) as stream:
        return bytes(stream.read())


@contextmanager
def refusals_named(path: str) -> Iterator[None]:
    """Turns what a storage answers to a write into one line that names the path.

    Raises:
        StorageError: the storage refused (disk full, no permission, out of reach).
    """
    try:
        yield
    except OSError as error:
        reason = one_line(str(error))[:300]
        raise StorageError(
            f"cannot write {path}: {reason}; what was finished before is kept, free space or mend the path"
        ) from error


def write_bytes(path: str, data: bytes) -> None:
    """Writes a file whole or not at all: beside its place first, then by rename.

    Raises:
        StorageError: the storage refuses (disk full, no permission); names the path.
    """
    fs, inner = open_filesystem(path)
    partial = partial_name(inner)
    with refusals_named(path):
        try:
            check_guards(path)
            try:
                _write_stream(fs, partial, data)
            except (
                FileNotFoundError
            ):  # most often the folder is there, and to ask for each of its parents costs as much as a write
                fs.create_dir(posixpath.dirname(inner), recursive=True)
                _write_stream(fs, partial, data)
            # Once more: a process may have been stopped for hours in between.
            check_guards(path)
            fs.move(partial, inner)
        except BaseException:
            with suppress(OSError):  # a storage that refuses writes may refuse this too
                fs.delete_file(partial)
            raise


def _write_stream(fs: pafs.FileSystem, inner: str, data: bytes) -> None:
    with fs.open_output_stream(inner) as stream:
        stream.write(data)


def partial_name(inner: str) -> str:
    """Where a file or folder is made before it takes its name: a place that no other writer has."""
    return f"{inner}.{uuid.uuid4().hex[:16]}.partial"


def remove_partials(root: str) -> None:
    """Removes what writers that were killed left below a folder. Only for whoever holds it."""
    fs, inner = open_filesystem(root)
    local, place = "://" not in root, _place(root)
    with suppress(OSError):
        for info in fs.get_file_info(pafs.FileSelector(inner, recursive=True, allow_not_found=True)):
            if not _PARTIAL.search(info.path):
                continue
            # What is hidden belongs to somebody else, as doctor's probe, and so does what a link leads to.
            own = "/." not in info.path[len(inner) :] and (not local or _place(info.path).startswith(f"{place}/"))
            if own:
                with suppress(OSError):  # inside of one that is gone already
                    (fs.delete_dir if info.type == pafs.FileType.Directory else fs.delete_file)(info.path)


@contextmanager
def guarded(root: str, check: Callable[[], None]) -> Iterator[None]:
    """Calls `check` before every write of this process below a folder, inside a `with` block: what it raises ends the write."""
    entry = (_place(root), check)
    _guards.append(entry)
    try:
        yield
    finally:
        _guards.remove(entry)


def check_guards(path: str) -> None:
    """What a writer calls before it writes."""
    if not _guards:  # to follow links takes longer than anything else here
        return
    place = _place(path)
    for root, check in list(_guards):
        if place == root or place.startswith(f"{root}/"):
            check()


def _place(path: str) -> str:
    """One name for each place: absolute, symbolic links of local paths followed."""
    return path.rstrip("/") if "://" in path else os.path.realpath(path)


def write_shard(root: str, relative: str, table: pa.Table) -> ShardFile:
    """Writes one parquet shard and returns its manifest entry."""
    data = _serialize(table)
    write_bytes(join(root, relative), data)
    return ShardFile(relative, table.num_rows, hashlib.sha256(data).hexdigest())


def write_file(path: str, table: pa.Table) -> None:
    """Writes a table that stands alone in one parquet file, whole or not at all."""
    write_bytes(path, _serialize(table))


def read_file(path: str) -> pa.Table:
    """Reads a parquet file that stands alone.

    Raises:
        ShardError: missing, or not whole.
    """
    root, name = posixpath.split(path)
    if not exists(path):
        raise ShardError(f"{path} is missing: run the stage that writes it first")
    return _parse(root, name, read_bytes(path))


def describe_shard(root: str, relative: str) -> ShardFile:
    """The manifest entry of a shard that another writer made.

    Raises:
        ShardError: the file cannot be read as parquet.
    """
    return read_shard(root, relative)[0]


def read_shard(root: str, relative: str) -> tuple[ShardFile, pa.Table]:
    """A shard's manifest entry and its rows, from one reading of the file.

    Raises:
        ShardError: the file cannot be read as parquet.
    """
    data = read_bytes(join(root, relative))
    table = _parse(root, relative, data)
    return ShardFile(relative, table.num_rows, hashlib.sha256(data).hexdigest()), table


def write_manifest(root: str, files: Sequence[ShardFile], fingerprint: str) -> Manifest:
    """Publishes a folder: from here on its files are read and never written again."""
    manifest = Manifest(SCHEMA_VERSION, fingerprint, tuple(sorted(files, key=lambda file: file.path)))
    tree = {
        "schema_version": manifest.schema_version,
        "fingerprint": fingerprint,
        "files": [vars(file) for file in manifest.files],
    }
    write_bytes(join(root, MANIFEST), json.dumps(tree, indent=1).encode())
    return manifest


def has_manifest(root: str) -> bool:
    """Whether a folder is finished."""
    return exists(join(root, MANIFEST))


def read_manifest(root: str, *, fingerprint: str | None = None) -> Manifest:
    """Reads and checks a folder's manifest.

    Raises:
        ShardError: none there, unreadable, of another schema version, of another recipe,
            or with a path that leaves the folder.
    """
    where = join(root, MANIFEST)
    if not exists(where):
        raise ShardError(f"{where} is missing: the stage that writes it has not finished; run it (with --resume) first")
    try:
        tree = parse_object(read_bytes(where))
        files = tuple(ShardFile(str(f["path"]), int(f["rows"]), str(f["sha256"])) for f in tree["files"])
        manifest = Manifest(int(tree["schema_version"]), str(tree["fingerprint"]), files)
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        reason = error_line(error, 160)
        raise ShardError(f"{where} is not a readable manifest ({reason}): remove its folder and run the stage again") from None
    if manifest.schema_version != SCHEMA_VERSION:
        raise ShardError(f"{where} has schema version {manifest.schema_version}, this program reads {SCHEMA_VERSION}")
    _check_paths(where, [file.path for file in files])
    if any(file.rows < 0 for file in files):
        raise ShardError(f"{where} has a file of fewer than 0 rows: the manifest was altered")
    if fingerprint is not None and manifest.fingerprint != fingerprint:
        raise ShardError(f"{where} belongs to recipe {manifest.fingerprint}, this one is {fingerprint}: use another --run-dir")
    return manifest


def _check_paths(where: str, paths: Sequence[str]) -> None:
    """Raises ShardError unless each path is that of another file inside the manifest's folder, in its shortest spelling."""
    for path in paths:
        if path.startswith("/") or ".." in path.split("/") or "://" in path:
            raise ShardError(f"{where} names {path[:200]!r}, which leaves its folder: the manifest was altered")
        plain = path.isprintable() and path not in ("", ".") and posixpath.normpath(path) == path
        if not plain or len(path) > LONGEST_PATH:
            raise ShardError(f"{where} names {path[:200]!r}, which is no plain name of a file: the manifest was altered")
    twice = next((path for path, times in Counter(paths).items() if times > 1), None)
    if twice is not None:
        raise ShardError(f"{where} names {twice!r} twice, whose rows would count double: the manifest was altered")


def read_table(root: str, *, fingerprint: str | None = None) -> pa.Table:
    """Reads the shards that a folder's manifest names, each checked against its sha256 and row count.

    Raises:
        ShardError: a shard is missing, cut short, or altered; names the file and both checksums.
    """
    tables = []
    for file in read_manifest(root, fingerprint=fingerprint).files:
        where = join(root, file.path)
        if not is_file(where):
            raise ShardError(f"{where} is named by the manifest but missing: restore it or remove the folder and run again")
        if "://" not in root and not Path(where).resolve().is_relative_to(Path(root).resolve()):
            raise ShardError(f"{where} leads out of its folder, by a symbolic link: put the file itself there")
        data = read_bytes(where)
        found = hashlib.sha256(data).hexdigest()
        if found != file.sha256:
            raise ShardError(
                f"{where} has sha256 {found[:12]}, its manifest says {file.sha256[:12]}: "
                "the file or the manifest was altered or cut short; restore it or remove the folder and run again"
            )
        table = _parse(root, file.path, data)
        if table.num_rows != file.rows:
            raise ShardError(f"{where} holds {table.num_rows} rows, its manifest says {file.rows}")
        tables.append(table)
    if not tables:
        raise ShardError(f"{join(root, MANIFEST)} names no files: the stage before wrote nothing")
    try:
        # A folder that was gone on with by a newer version has files with and without its further columns.
        return pa.concat_tables(tables, promote_options="default" if _some_with_more_columns(tables) else "none")
    except pa.ArrowException as error:
        raise ShardError(f"the files of {root} have unlike columns ({error_line(error, 160)}): run the stage again") from error


def _some_with_more_columns(tables: Sequence[pa.Table]) -> bool:
    """Whether the widest table has the columns of all others, and nulls may stand in those that one lacks."""
    widest = max((table.schema for table in tables), key=len)
    optional = {field.name for field in widest if field.nullable}
    names = [set(table.schema.names) for table in tables]
    return all(one <= set(widest.names) and set(widest.names) - one <= optional for one in names)


def _serialize(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **parquet_options(table.schema, table.num_rows))
    return bytes(sink.getvalue().to_pybytes())


def _parse(root: str, relative: str, data: bytes) -> pa.Table:
    try:
        return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
    # Of a file that was altered the reader's library complains in many ways.
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        reason = error_line(error, 160)
        raise ShardError(f"{join(root, relative)} is not a whole parquet file ({reason}): remove it and resume") from None


def scan_shards(root: str, suffix: str = ".parquet") -> list[str]:
    """Relative paths of the files with this suffix directly in a folder, sorted; empty where it is missing."""
    return list(shard_sizes(root, suffix))


def shard_sizes(root: str, suffix: str = ".parquet") -> dict[str, int]:
    """What `scan_shards` lists, in that order, with each file's bytes."""
    infos = list_folder(root)
    return {info.base_name: info.size for info in sorted(infos, key=lambda one: one.base_name) if info.base_name.endswith(suffix)}
