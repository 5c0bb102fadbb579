from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow.fs as pafs
import pytest
from fsspec.implementations.local import LocalFileSystem

from dat_ray.data import hold as module
from dat_ray.data import processes, shards
from dat_ray.data.hold import OWNER, Lease, Owner, _leased, _locked, _read_owner, _write_lease, hold
from dat_ray.data.shards import write_bytes
from dat_ray.errors import DatError, LeaseLost, StorageError

pytestmark = pytest.mark.fault

HOLDER = """
import sys, time
from dat_ray.data.hold import hold
with hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_driver_is_turned_away_and_a_killed_one_leaves_nothing_stale(tmp_path, other) -> None:
    root = str(tmp_path / "run")
    with pytest.raises(DatError, match=rf"in use by process {other.pid} on .* since .* UTC: .* one driver at a time"), hold(root):
        pass
    other.kill()
    other.wait()
    with hold(root):
        owner = _read_owner(root)
        assert owner is not None
        assert owner.pid != other.pid


def test_the_process_that_holds_it_just_goes_on(tmp_path) -> None:
    root = str(tmp_path / "run")
    with hold(root):
        with hold(f"{root}/"):
            pass
        # The end of the inner one gives nothing back; at the end of the outer one it is free.
        with pytest.raises(DatError, match=rf"in use by process {os.getpid()}"), _locked(root):
            pass
    with _locked(root):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"cannot write .*file/run"), hold(str(tmp_path / "file" / "run")):
        pass


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases are for object stores; a local folder serves to look at one."""
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.05)


@pytest.fixture
def in_the_background():
    """A process as `&` or nohup starts it, SIGINT ignored, that unwinds on SIGTERM as the command line does."""

    def unwind(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGTERM, unwind)
    yield
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])


@pytest.mark.usefixtures("quick", "in_the_background")
def test_a_lease_that_was_taken_over_stops_its_former_owner(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt), _leased(str(tmp_path)):
        for _ in range(200):
            # A renewal that has just looked writes over it, as the new owner would notice.
            owner = _read_owner(str(tmp_path))
            if owner is None or owner.token != "theirs":
                _write_lease(str(tmp_path), Owner("elsewhere", 7, "now", "theirs"))
            time.sleep(0.05)
    owner = _read_owner(str(tmp_path))
    assert owner is not None
    assert owner.token == "theirs", "what is another's is not taken away"
    assert pafs.LocalFileSystem().get_file_info(str(tmp_path / OWNER)).is_file


@pytest.mark.usefixtures("quick", "no_locks")
def test_a_file_system_without_locks_gets_a_lease(tmp_path) -> None:
    with hold(str(tmp_path / "run")):
        owner = _read_owner(str(tmp_path / "run"))
        assert owner is not None
        assert not owner.is_gone()
    assert _read_owner(str(tmp_path / "run")) is None, "a lease is given back"


class Clock:
    """What a lease reads; a test sets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module, "_seconds", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    # Only the clock of the test moves: the thread that renews never gets its turn.
    monkeypatch.setattr(module, "RENEW_SECONDS", 3600.0)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)
    return Clock(monkeypatch)


def _lease(root: str) -> Lease:
    return module._take(root, Owner.this())


def _slept_by(sleep: Callable[[float], None]) -> SimpleNamespace:
    """The module `time`, but for its sleep."""
    return SimpleNamespace(**(vars(time) | {"sleep": sleep}))


@pytest.mark.parametrize("beats", [1, 5, 44])
def test_a_lease_of_another_host_is_respected_while_it_is_renewed(
    tmp_path, clock: Clock, monkeypatch: pytest.MonkeyPatch, beats: int
) -> None:
    """Its owner's next sign of life comes after so many seconds, at the latest within the lease."""
    root, theirs, began = str(tmp_path), Owner("elsewhere", 7, "now", "theirs"), clock.now
    _write_lease(root, theirs)

    def sleep(_: float) -> None:
        clock.now += 1
        if clock.now - began == beats:
            _write_lease(root, replace(theirs, beat=1))

    monkeypatch.setattr(module, "time", _slept_by(sleep))
    with pytest.raises(DatError, match="in use by process 7 on elsewhere"), _leased(root):
        pass
    assert clock.now - began == beats


def test_a_lease_of_another_host_is_taken_once_it_has_run_out(tmp_path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    root, began = str(tmp_path), clock.now
    _write_lease(root, Owner("elsewhere", 7, "now", "theirs"))

    def sleep(_: float) -> None:
        clock.now += 1

    monkeypatch.setattr(module, "time", _slept_by(sleep))
    with _leased(root):
        # One second more: until what was written is read back.
        assert clock.now - began == module.STALE_SECONDS + 2
        owner = _read_owner(root)
        assert owner is not None
        assert owner.pid == Owner.this().pid
    assert not (tmp_path / OWNER).exists()


def _earlier(owner: Owner) -> str:
    """A process of this id that began before."""
    where, _, start = owner.process.rpartition(" ")
    return f"{where} {int(start) - 1}"


def test_a_lease_of_a_process_that_has_ended_here_is_free_at_once(
    tmp_path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Owner.this()
    slept: list[float] = []
    _write_lease(str(tmp_path), Owner(here.host, here.pid, "now", "dead", process=_earlier(here)))
    monkeypatch.setattr(module, "time", _slept_by(slept.append))
    with _leased(str(tmp_path)):
        assert slept == [module.SETTLE_SECONDS], "until what was written is read back, and not to watch the other"


def test_a_driver_that_stood_still_never_takes_its_lease_back(tmp_path, clock: Clock) -> None:
    """Stopped for longer than the lease; another one came, worked and went meanwhile."""
    root = str(tmp_path)
    lease = _lease(root)
    clock.now += 44
    lease.renew()
    clock.now += 44
    lease.renew()
    clock.now += 46
    (tmp_path / OWNER).unlink()
    with pytest.raises(LeaseLost, match=r"was not renewed by this process for 46 s, .*; --resume continues"):
        lease.renew()
    assert not (tmp_path / OWNER).exists()
    with pytest.raises(LeaseLost):
        lease.check()


@pytest.mark.parametrize("since", [0, 44])
def test_a_lease_that_was_removed_is_not_written_again(tmp_path, clock: Clock, since: int) -> None:
    lease = _lease(str(tmp_path))
    (tmp_path / OWNER).unlink()
    clock.now += since
    lease.renew()
    assert not (tmp_path / OWNER).exists()
    clock.now += 46 - since
    with pytest.raises(LeaseLost):
        lease.check()


def test_a_renewal_that_took_longer_than_the_lease_does_not_write(
    tmp_path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, read = _lease(str(tmp_path)), module._read_owner
    before = (tmp_path / OWNER).read_bytes()

    def slow(root: str) -> Owner | None:
        clock.now += 50
        return read(root)

    monkeypatch.setattr(module, "_read_owner", slow)
    with pytest.raises(LeaseLost):
        lease.renew()
    assert (tmp_path / OWNER).read_bytes() == before


def test_a_renewal_counts_from_its_beginning(tmp_path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others see is when the file was written at the earliest."""
    lease, write = _lease(str(tmp_path)), module._write_lease

    def slow(root: str, owner: Owner) -> None:
        write(root, owner)
        clock.now += 40

    monkeypatch.setattr(module, "_write_lease", slow)
    lease.renew()
    clock.now += 6
    with pytest.raises(LeaseLost):
        lease.check()


@pytest.mark.parametrize("below", ["run.json", "candidates/round-0/_manifest.json"])
def test_nothing_below_is_written_once_the_lease_has_run_out(tmp_path, clock: Clock, below: str) -> None:
    """Not even in the moment before the renewal notices; a lease on a folder says nothing of the others."""
    root = tmp_path / "run"
    root.mkdir()
    with _leased(str(root)):
        write_bytes(str(root / below), b"mine")
        clock.now += 46
        with pytest.raises(LeaseLost):
            write_bytes(str(root / below), b"late")
        assert (root / below).read_bytes() == b"mine"
        assert [path for path in root.rglob("*") if path.is_file() and path.name != OWNER] == [root / below]
        write_bytes(str(tmp_path / "run-2"), b"another place")
    assert (root / OWNER).exists(), "what may be another's by now is not taken away"
    write_bytes(str(root / below), b"later")


def test_a_process_stopped_between_writing_and_naming_a_file_does_not_name_it(
    tmp_path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = shards.open_filesystem

    def slow(path: str):
        fs, inner = opened(path)
        handler = pafs.FSSpecHandler(StoppedAfterClose(clock))
        return (pafs.PyFileSystem(handler), inner) if path.endswith("late.json") else (fs, inner)

    with _leased(str(tmp_path)):
        monkeypatch.setattr(shards, "open_filesystem", slow)
        with pytest.raises(LeaseLost):
            write_bytes(str(tmp_path / "late.json"), b"x")
    assert {path.name for path in tmp_path.iterdir()} == {OWNER}


class StoppedAfterClose(LocalFileSystem):
    """A disk on which the process stands still for a minute, once the bytes are there."""

    cachable = False

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def _open(self, *arguments: Any, **named: Any) -> Any:
        stream = super()._open(*arguments, **named)
        self.clock.now += 60
        return stream


def test_two_drivers_of_which_one_stood_still_never_write_both(tmp_path, clock: Clock) -> None:
    first = _lease(str(tmp_path))
    clock.now += 100
    _write_lease(str(tmp_path), Owner("elsewhere", 7, "now", "theirs"))
    with pytest.raises(LeaseLost):
        first.renew()
    first.give_back()
    owner = _read_owner(str(tmp_path))
    assert owner is not None
    assert owner.token == "theirs"


def test_a_clock_that_is_set_makes_no_living_owner_look_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil reads the boot time anew, so that the start of a process moves with the wall clock."""
    mine = Owner.this()
    assert mine.process
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 0.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert mine.is_gone() is False


def test_what_is_known_of_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Owner.this()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = processes.start_of(child.pid)
    living = replace(mine, pid=child.pid, process=f"{processes.space()} {start}")
    assert living.is_gone() is False
    assert replace(living, process=_earlier(living)).is_gone() is True, "its id was used again"
    assert replace(living, host="elsewhere").is_gone() is None
    assert replace(living, process=f"another-boot pid:[1] {start}").is_gone() is None, "another boot, or another container"
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert living.is_gone() is True, "dead, though nobody has waited for it yet"
    child.wait()
    assert living.is_gone() is True
    # A system that names no starts: only an id that nobody has says something.
    assert replace(living, process="").is_gone() is True
    assert replace(mine, process="").is_gone() is None


def test_a_record_of_version_0_1_is_read(tmp_path) -> None:
    record = {"host": "h", "pid": 7, "started": 1764200000.25, "since": "2026-11-01 00:00:00 UTC", "token": "t", "beat": 3}
    (tmp_path / OWNER).write_text(json.dumps(record))
    assert _read_owner(str(tmp_path)) == Owner("h", 7, "2026-11-01 00:00:00 UTC", "t", 3, "")


def test_what_a_killed_writer_left_goes_with_the_next_driver(tmp_path) -> None:
    partial = shards.partial_name(str(tmp_path / "logs" / "a.json"))
    folder = shards.partial_name(str(tmp_path / "training" / "adapter"))
    (tmp_path / ".doctor-1").mkdir()
    probe = shards.partial_name(str(tmp_path / ".doctor-1" / "driver"))
    kept = [tmp_path / "mine.partial", tmp_path / "logs" / "a.json", Path(probe)]
    os.makedirs(folder)
    (tmp_path / "logs").mkdir()
    for path in (Path(partial), Path(folder) / "weights", *kept):
        path.write_bytes(b"x")
    other = tmp_path.with_name(f"{tmp_path.name}-other")
    other.mkdir()
    theirs = Path(shards.partial_name(str(other / "a.json")))
    theirs.write_bytes(b"x")
    (tmp_path / "link").symlink_to(other)
    with hold(str(tmp_path)):
        assert not Path(partial).exists()
        assert not Path(folder).exists()
        assert theirs.exists()
        assert all(path.exists() for path in kept)
