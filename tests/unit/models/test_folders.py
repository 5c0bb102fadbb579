from __future__ import annotations

import json
import multiprocessing
import os
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
from filelock import FileLock

from dat_ray.data.scratch import OWNER
from dat_ray.errors import DatError
from dat_ray.models.folders import MARKER, build_once, is_complete, replace_folder

KEY = {"source": "abc"}


def write_hello(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "hello.txt").write_text("hello")
    (folder / "intact").touch()


def never(folder: Path) -> None:
    raise AssertionError("must not build again")


def test_builds_the_first_time_only(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "result"
    assert not is_complete(target, KEY)
    assert build_once(target, KEY, write_hello) is True
    assert (target / "sub" / "hello.txt").read_text() == "hello"
    assert build_once(target, KEY, never) is False


@pytest.mark.usefixtures("no_locks")
def test_without_locks_nobody_waits_for_a_builder_that_was_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, at_work = tmp_path / "result", tmp_path / ".result.building-of-another-node"
    at_work.mkdir()
    with caplog.at_level("WARNING"):
        assert build_once(folder, KEY, write_hello, lock_wait_s=0) is True
        (folder / MARKER).unlink()
        assert build_once(folder, KEY, write_hello, lock_wait_s=0) is True
    assert is_complete(folder, KEY)
    assert at_work.exists(), "who builds there now cannot be known"
    assert "without locks" in caplog.text


def test_builds_again_for_another_key(tmp_path: Path) -> None:
    target = tmp_path / "result"
    build_once(target, KEY, write_hello)
    assert not is_complete(target, {"source": "other"})
    assert build_once(target, {"source": "other"}, lambda folder: (folder / "new").touch()) is True
    assert sorted(p.name for p in target.iterdir()) == sorted([MARKER, "new"])


@pytest.mark.parametrize("damage", ["truncate", "remove", "marker", "garbage"])
def test_builds_again_when_damaged(tmp_path: Path, damage: str) -> None:
    target = tmp_path / "result"
    build_once(target, KEY, write_hello)
    file = target / "sub" / "hello.txt"
    match damage:
        case "truncate":
            file.write_text("hel")
        case "remove":
            file.unlink()
        case "marker":
            (target / MARKER).unlink()
        case "garbage":
            (target / MARKER).write_text("[]")
    assert not is_complete(target, KEY)
    assert build_once(target, KEY, write_hello) is True
    assert file.read_text() == "hello"


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("disk is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        build_once(tmp_path / "result", KEY, fail)
    assert [p.name for p in tmp_path.iterdir()] == [".result.lock"]


def test_a_failed_replacement_keeps_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "result"
    build_once(target, KEY, write_hello)

    def fail() -> None:
        with replace_folder(target) as scratch:
            (scratch / "new").touch()
            raise RuntimeError("disk is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        fail()
    assert is_complete(target, KEY)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".result.lock", "result"]


def test_leftovers_of_a_killed_build_are_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".result.building-killed"
    leftover.mkdir()
    (leftover / "half").touch()
    build_once(tmp_path / "result", KEY, write_hello)
    assert not leftover.exists()


@pytest.fixture
def replaced(tmp_path: Path) -> Path:
    """A folder with brackets in its name and something in it, which is to be replaced."""
    folder = tmp_path / "result [1]"
    folder.mkdir()
    (folder / "old").write_text("old")
    return folder


def replace_it(folder: Path) -> None:
    with replace_folder(folder) as scratch:
        (scratch / "new").write_text("new")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_signal_between_the_renames_leaves_the_old_content_and_nothing_else(
    replaced: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    rename, done = os.rename, list[str]()

    def interrupted(*paths: Path) -> None:
        if len(done) == count:
            done.append("signal")
            raise KeyboardInterrupt
        done.append("rename")
        rename(*paths)

    monkeypatch.setattr(os, "rename", interrupted)
    if count == 2:  # past the last one there is nothing to interrupt
        replace_it(replaced)
    else:
        with pytest.raises(KeyboardInterrupt):
            replace_it(replaced)
    assert [path.name for path in replaced.iterdir()] == ["new" if count == 2 else "old"]
    assert list(replaced.parent.iterdir()) == [replaced]


def _killed_at(count: int, folder: Path) -> None:
    """Replaces the folder in a process that ends before the rename of this number, like one that is killed."""
    rename, done = os.rename, list[str]()

    def killed(*paths: Path) -> None:
        if len(done) == count:
            os._exit(9)
        done.append("rename")
        rename(*paths)

    with patch.object(os, "rename", killed):
        replace_it(folder)


@pytest.mark.parametrize("count", [0, 1])
def test_what_a_kill_between_the_renames_leaves_is_put_back_and_removed(replaced: Path, count: int) -> None:
    worker = multiprocessing.get_context("fork").Process(target=_killed_at, args=(count, replaced))
    worker.start()
    worker.join()
    assert worker.exitcode == 9
    assert replaced.exists() == (count == 0)
    other = replaced.parent / ".result [1].building-elsewhere"  # of another machine, which may be at work
    other.mkdir()
    (other / OWNER).write_text(json.dumps({"pid": worker.pid, "process": "another-boot pid:[1] 5"}))

    def fail() -> None:
        with replace_folder(replaced):
            raise RuntimeError("disk is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        fail()
    assert (replaced / "old").read_text() == "old"
    assert sorted(replaced.parent.iterdir()) == [other, replaced]
    replace_it(replaced)
    assert [path.name for path in replaced.iterdir()] == ["new"]
    assert sorted(replaced.parent.iterdir()) == [other, replaced]


def test_waiting_ends_with_the_name_of_the_lock(tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / ".result.lock"),
        pytest.raises(DatError, match=r"waited 0 s for another process to build .*\.result\.lock"),
    ):
        build_once(tmp_path / "result", KEY, never, lock_wait_s=0.05)


def _build_slowly(builds: Path, folder: Path) -> None:
    with builds.open("a") as log:
        log.write("x")
    time.sleep(0.3)
    write_hello(folder)


def test_two_processes_build_once(tmp_path: Path) -> None:
    # Forked children start together within the 0.3 s that a build takes.
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=build_once, args=(tmp_path / "result", KEY, partial(_build_slowly, tmp_path / "builds")))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert (tmp_path / "builds").read_text() == "x"
    assert is_complete(tmp_path / "result", KEY)
