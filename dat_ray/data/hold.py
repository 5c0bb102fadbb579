"""One driver at a time on a run directory.

On a file system the operating system holds the lock and lets go of it when the process ends, however it ends. An object
store has no locks: there a lease is written and renewed, and one that nobody renews runs out. Two drivers that take a
free lease within the same second both see it: whoever wrote last has it. What protects the data even then is that shards
carry names of their own execution, that a row is a function of its id, and that the manifest is one object, written last.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

import psutil
import pyarrow.fs as pafs
from filelock import FileLock, Timeout

from dat_ray.data.shards import exists, join, open_filesystem, read_bytes, refusals_named, write_bytes
from dat_ray.errors import DatError, StorageError
from dat_ray.json_text import parse_object
from dat_ray.progress import stage_line

LOCK, OWNER = "_lock", "_owner.json"
# A lease is renewed this often, and has run out after four turns without a sign.
RENEW_SECONDS, STALE_SECONDS = 10.0, 45.0
# Between writing a lease and believing it: longer than a write takes.
SETTLE_SECONDS = 1.0

_held: set[str] = set()


@dataclass(frozen=True)
class Owner:
    """Who works on a run directory."""

    host: str
    pid: int
    started: float
    since: str
    token: str
    beat: int = 0

    @classmethod
    def this(cls) -> Owner:
        now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()) + " UTC"
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time(), now, uuid.uuid4().hex)

    def is_gone(self) -> bool:
        """Whether it is sure that the process has ended; on another host nobody knows."""
        if self.host != socket.gethostname():
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) > 1.0
        except psutil.NoSuchProcess:
            return True


@contextmanager
def hold(root: str) -> Iterator[None]:
    """Keeps every other driver away from a run directory inside a `with` block.

    A process that holds it already just goes on.

    Raises:
        DatError: another driver is at work; names it.
        StorageError: the directory cannot be written.
    """
    local = isinstance(open_filesystem(root)[0], pafs.LocalFileSystem)
    place = os.path.realpath(open_filesystem(root)[1]) if local else root.rstrip("/")
    if place in _held:
        yield
        return
    with _locked(place) if local else _leased(place):
        _held.add(place)
        try:
            yield
        finally:
            _held.discard(place)


@contextmanager
def _locked(root: str) -> Iterator[None]:
    with refusals_named(root):
        os.makedirs(root, exist_ok=True)
        lock, locks = FileLock(join(root, LOCK)), True
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise _in_use(root, _read_owner(root)) from None
        except NotImplementedError:
            locks = False
    if not locks:  # a network file system that has none
        with _leased(root):
            yield
        return
    try:
        write_bytes(join(root, OWNER), json.dumps(asdict(Owner.this())).encode())
        yield
    finally:
        lock.release()


@contextmanager
def _leased(root: str) -> Iterator[None]:
    mine = Owner.this()
    _take(root, mine)
    stop = threading.Event()

    def renew() -> None:
        beat = 0
        while not stop.wait(RENEW_SECONDS):
            beat += 1
            try:
                owner = _read_owner(root)
                if owner is not None and owner.token != mine.token:
                    stage_line(f"{root} was taken over by process {owner.pid} on {owner.host}: stopping here")
                    _stop_this_process()
                    return
                _write_lease(root, Owner(**{**asdict(mine), "beat": beat}))
            except (OSError, StorageError):
                continue  # it has several turns before the lease runs out

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with suppress(OSError):
            owner = _read_owner(root)
            if owner is not None and owner.token == mine.token:
                fs, inner = open_filesystem(join(root, OWNER))
                fs.delete_file(inner)


def _stop_this_process() -> None:
    """As a scheduler would: SIGTERM, which the verbs unwind on. A shell that starts a process in the background has it
    ignore SIGINT, so that one may never arrive."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGTERM)


def _take(root: str, mine: Owner) -> None:
    seen, since = _read_owner(root), time.monotonic()
    while True:
        if seen is None or seen.is_gone() or time.monotonic() - since > STALE_SECONDS:
            _write_lease(root, mine)
            time.sleep(SETTLE_SECONDS)
            now = _read_owner(root)
            if now is not None and now.token == mine.token:
                return
            raise _in_use(root, now)
        if seen.host == socket.gethostname():
            raise _in_use(root, seen)  # alive, or it would be gone
        if time.monotonic() - since < SETTLE_SECONDS:
            stage_line(f"{root} was held by process {seen.pid} on {seen.host}: watching for {STALE_SECONDS:g} s whether it lives")
        time.sleep(min(RENEW_SECONDS / 2, SETTLE_SECONDS))
        now = _read_owner(root)
        if now is not None and (now.token, now.beat) != (seen.token, seen.beat):
            raise _in_use(root, now)
        if now is None:
            seen = None


def _write_lease(root: str, owner: Owner) -> None:
    fs, inner = open_filesystem(join(root, OWNER))
    with refusals_named(join(root, OWNER)), fs.open_output_stream(inner) as stream:
        stream.write(json.dumps(asdict(owner)).encode())


def _read_owner(root: str) -> Owner | None:
    path = join(root, OWNER)
    try:
        return Owner(**parse_object(read_bytes(path))) if exists(path) else None
    except (OSError, ValueError, TypeError):  # being written, or deleted since
        return None


def _in_use(root: str, owner: Owner | None) -> DatError:
    who = f"process {owner.pid} on {owner.host} since {owner.since}" if owner else "another process"
    return DatError(f"{root} is in use by {who}: wait until it is done, or end it; a run directory has one driver at a time")
