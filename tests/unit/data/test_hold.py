from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pyarrow.fs as pafs
import pytest

from dat_ray.data import hold as module
from dat_ray.data.hold import OWNER, Owner, _leased, _read_owner, _write_lease, hold
from dat_ray.errors import DatError, StorageError

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
    with hold(str(tmp_path / "run")), hold(str(tmp_path / "run") + "/"):
        pass
    with hold(str(tmp_path / "run")):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"cannot write .*file/run"), hold(str(tmp_path / "file" / "run")):
        pass


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(module, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.05)


@pytest.mark.usefixtures("quick")
def test_a_lease_of_another_host_is_respected_while_it_is_renewed_and_taken_when_not(tmp_path) -> None:
    """Leases are for object stores; a local folder serves to look at one."""
    root = str(tmp_path)
    theirs = Owner("elsewhere", 7, 0.0, "now", "theirs")
    _write_lease(root, theirs)
    stop = threading.Event()

    def renew() -> None:
        beat = 0
        while not stop.wait(0.2):
            beat += 1
            _write_lease(root, Owner("elsewhere", 7, 0.0, "now", "theirs", beat))

    thread = threading.Thread(target=renew)
    thread.start()
    with pytest.raises(DatError, match="in use by process 7 on elsewhere"), _leased(root):
        pass
    stop.set()
    thread.join()

    began = time.monotonic()
    with _leased(root):
        assert time.monotonic() - began > 1.5
        assert (tmp_path / OWNER).exists()
    assert not (tmp_path / OWNER).exists()


@pytest.mark.usefixtures("quick")
def test_a_lease_of_a_process_that_has_ended_here_is_free_at_once(tmp_path) -> None:
    here = Owner.this()
    _write_lease(str(tmp_path), Owner(here.host, here.pid, here.started - 100, "now", "dead"))
    began = time.monotonic()
    with _leased(str(tmp_path)):
        assert time.monotonic() - began < 1.5


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
                _write_lease(str(tmp_path), Owner("elsewhere", 7, 0.0, "now", "theirs"))
            time.sleep(0.05)
    owner = _read_owner(str(tmp_path))
    assert owner is not None
    assert owner.token == "theirs", "what is another's is not taken away"
    assert pafs.LocalFileSystem().get_file_info(str(tmp_path / OWNER)).is_file


@pytest.mark.usefixtures("quick")
def test_a_file_system_without_locks_gets_a_lease(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(module.FileLock, "acquire", refuse)
    with hold(str(tmp_path / "run")):
        owner = _read_owner(str(tmp_path / "run"))
        assert owner is not None
        assert not owner.is_gone()
    assert _read_owner(str(tmp_path / "run")) is None, "a lease is given back"
