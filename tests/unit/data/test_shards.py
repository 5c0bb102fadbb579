from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from dat_ray.cli import main
from dat_ray.data import shards, storage
from dat_ray.data.shards import (
    MANIFEST,
    describe_shard,
    exists,
    guarded,
    has_manifest,
    list_folder,
    open_filesystem,
    read_bytes,
    read_file,
    read_manifest,
    read_table,
    scan_shards,
    write_bytes,
    write_file,
    write_manifest,
    write_shard,
)
from dat_ray.errors import DatError, InputError, ShardError, StorageError


def _table(*values: int) -> pa.Table:
    return pa.table({"x": pa.array(values, pa.int64())})


@pytest.fixture
def folder(tmp_path) -> str:
    root = str(tmp_path / "rows")
    files = [write_shard(root, "part-1.parquet", _table(3)), write_shard(root, "part-0.parquet", _table(1, 2))]
    write_manifest(root, files, "f00d")
    return root


def test_a_finished_folder_reads_in_manifest_order(folder: str) -> None:
    assert read_table(folder, fingerprint="f00d")["x"].to_pylist() == [1, 2, 3]
    manifest = read_manifest(folder)
    assert manifest.rows == 3
    assert [file.path for file in manifest.files] == ["part-0.parquet", "part-1.parquet"]
    assert set(json.loads(open(f"{folder}/{MANIFEST}").read())) == {"schema_version", "fingerprint", "files"}


def test_files_that_no_manifest_names_are_not_read(folder: str) -> None:
    write_shard(folder, "part-9.parquet", _table(9))
    assert read_table(folder)["x"].to_pylist() == [1, 2, 3]
    assert scan_shards(folder) == ["part-0.parquet", "part-1.parquet", "part-9.parquet"]


def test_an_unfinished_folder_is_not_read(tmp_path) -> None:
    root = str(tmp_path / "rows")
    write_shard(root, "part-0.parquet", _table(1))
    assert not has_manifest(root)
    with pytest.raises(ShardError, match="has not finished"):
        read_table(root)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: os.truncate(path, os.path.getsize(path) // 2), "altered or cut short"),
        (lambda path: open(path, "r+b").write(b"X"), "altered or cut short"),
        (os.remove, "missing"),
    ],
)
def test_a_damaged_shard_is_named(folder: str, damage, message: str) -> None:
    damage(f"{folder}/part-0.parquet")
    with pytest.raises(ShardError, match=message) as caught:
        read_table(folder)
    assert "part-0.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_shard_cannot_be_published(tmp_path) -> None:
    root = str(tmp_path)
    write_shard(root, "part-0.parquet", _table(1, 2))
    os.truncate(f"{root}/part-0.parquet", 40)
    with pytest.raises(ShardError, match="not a whole parquet file"):
        describe_shard(root, "part-0.parquet")


def _alter(folder: str, **changes: object) -> None:
    path = f"{folder}/{MANIFEST}"
    tree = json.loads(open(path).read())
    tree["files"][0].update({k: v for k, v in changes.items() if k in tree["files"][0]})
    tree.update({k: v for k, v in changes.items() if k not in tree["files"][0]})
    with open(path, "w") as stream:
        stream.write(json.dumps(tree))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "its manifest says 000000000000"),
        ({"rows": 7}, "its manifest says 7"),
        ({"schema_version": 99}, "schema version 99"),
        ({"path": "../../etc/passwd"}, "leaves its folder"),
        ({"path": "/etc/passwd"}, "leaves its folder"),
        ({"path": "a" * 1001}, "no plain name of a file"),
        ({"files": "no"}, "not a readable manifest"),
    ],
)
def test_an_altered_manifest_is_refused(folder: str, changes: dict, message: str) -> None:
    _alter(folder, **changes)
    with pytest.raises(ShardError, match=message):
        read_table(folder)


def test_another_recipe_s_folder_is_refused(folder: str) -> None:
    with pytest.raises(ShardError, match="belongs to recipe f00d"):
        read_table(folder, fingerprint="beef")


def test_a_write_is_whole_or_absent(tmp_path) -> None:
    path = str(tmp_path / "a" / "file.bin")
    write_bytes(path, b"first")
    write_bytes(path, b"second")
    assert open(path, "rb").read() == b"second"
    assert os.listdir(tmp_path / "a") == ["file.bin"]


PATHS = [
    "/",
    "/a",
    "/a/b",
    "/a/b/",
    "/a//b",
    "//a",
    "/a/./b",
    "/a/.",
    "/.",
    "/a/..",
    "/a/../b",
    "/.hidden",
    "/a/...",
    "/a b/ü",
    "a",
    ".",
    "./a",
    "",
    "a/",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_local_path_is_that_of_pathlib(path: str) -> None:
    assert open_filesystem(path)[1] == str(Path(path).absolute())


def test_folders_are_made_where_they_are_missing_and_a_file_in_their_place_is_named(tmp_path) -> None:
    write_bytes(str(tmp_path / "a/b/c/file.bin"), b"deep")
    assert (tmp_path / "a/b/c/file.bin").read_bytes() == b"deep"
    with pytest.raises(StorageError, match=r"cannot write .*file\.bin/other"):
        write_bytes(str(tmp_path / "a/b/c/file.bin/other"), b"x")
    assert os.listdir(tmp_path / "a/b/c") == ["file.bin"]


def test_a_full_disk_is_one_line_and_keeps_what_was_finished(tmp_path) -> None:
    """A file size limit stands in for the full disk: writes past it fail as they would on one."""
    code = textwrap.dedent("""
        import os, resource, signal, sys
        # A cached module that the limit cuts short would stay, for every process after this one.
        sys.dont_write_bytecode = True
        import pyarrow as pa
        from dat_ray.data.shards import write_shard, write_manifest, read_table
        from dat_ray.errors import DatError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        root = sys.argv[1]
        write_manifest(root, [write_shard(root, "part-0.parquet", pa.table({"x": [1]}))], "f")
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            write_shard(root, "part-1.parquet", pa.table({"x": [os.urandom(1 << 16)]}))
        except DatError as error:
            assert "cannot write" in str(error) and "part-1.parquet" in str(error), error
        else:
            raise SystemExit("the write should have failed")
        assert sorted(os.listdir(root)) == ["_manifest.json", "part-0.parquet"], os.listdir(root)
        assert read_table(root)["x"].to_pylist() == [1]
    """)
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_a_table_alone_in_a_file(tmp_path) -> None:
    path = str(tmp_path / "behaviors.parquet")
    with pytest.raises(ShardError, match="missing"):
        read_file(path)
    write_file(path, _table(5))
    assert read_file(path)["x"].to_pylist() == [5]
    os.truncate(path, 30)
    with pytest.raises(ShardError, match="not a whole parquet file"):
        read_file(path)


def test_errors_are_the_kind_the_command_line_prints() -> None:
    assert issubclass(ShardError, DatError)


def _before_it_takes_its_name(path: str, act: Callable[[], None]) -> AbstractContextManager[None]:
    """Does something once, when the next writer of a file has written all bytes and has not renamed them."""
    calls: list[None] = []

    def check() -> None:
        calls.append(None)
        if len(calls) == 2:
            act()

    return guarded(path, check)


def test_two_writers_of_one_file_both_write_it_whole(tmp_path) -> None:
    path = str(tmp_path / "counts.json")
    with _before_it_takes_its_name(path, lambda: write_bytes(path, b"the other's")):
        write_bytes(path, b"mine, a longer one")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"counts.json": b"mine, a longer one"}


def test_a_writer_that_is_stopped_leaves_nothing(tmp_path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    path = str(tmp_path / "counts.json")
    write_bytes(path, b"before")
    with pytest.raises(KeyboardInterrupt), _before_it_takes_its_name(path, stop):
        write_bytes(path, b"after")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"counts.json": b"before"}


def test_a_uri_of_no_storage_is_one_line_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for uri in ("ftp://host/x", "s3://two words/x"):
        for ask in (open_filesystem, exists, list_folder, read_bytes):
            with pytest.raises(InputError, match="use a path, s3:// or gs://"):
                ask(uri)
    for command in (
        ["status", "ftp://host/x"],
        ["export", "ftp://host/x", "--out", str(tmp_path)],
        ["study", "demo-arms", "--study-dir", "ftp://host/x"],
        ["evaluate", "--replay", "ftp://host/x"],
    ):
        assert main(command) == 2
        printed = capsys.readouterr().err
        assert "names no storage" in printed
        assert "Traceback" not in printed


def test_storage_that_is_out_of_reach_is_one_line_and_still_an_outage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Away(pafs.LocalFileSystem):
        def get_file_info(self, _: object) -> None:
            raise OSError("When listing: no such host\nwith a second line")

    monkeypatch.setattr(shards, "open_filesystem", lambda path: (Away(), path))
    for ask in (exists, list_folder):
        with pytest.raises(StorageError, match=r"s3://bucket/x cannot be reached .*no such host.: check the address") as caught:
            ask("s3://bucket/x")
        assert isinstance(caught.value, OSError)  # a lease waits out an outage, which it knows by this
        assert "\n" not in str(pickle.loads(pickle.dumps(caught.value)))
    assert main(["status", "s3://bucket/x"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_filesystem_that_cannot_be_opened_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def from_uri(uri: str) -> None:
        opened.append(uri)
        raise OSError("When resolving region for bucket 'nosuch': could not resolve host")

    monkeypatch.setattr(storage.pafs, "FileSystem", SimpleNamespace(from_uri=from_uri))
    with pytest.raises(StorageError, match="gs://nosuch/x cannot be reached"):
        open_filesystem("gs://nosuch/x")
    # Its library's own limit is 15 minutes, in which no signal ends the process.
    assert opened == ["gs://nosuch/x?retry_limit_seconds=60"]
