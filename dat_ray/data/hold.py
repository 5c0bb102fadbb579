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
from dataclasses import asdict, dataclass, fields, replace

import pyarrow.fs as pafs
from filelock import Timeout

from dat_ray.data.file_locks import file_lock, try_lock
from dat_ray.data.processes import has_ended, this_process
from dat_ray.data.shards import (
    exists,
    guarded,
    join,
    open_filesystem,
    read_bytes,
    refusals_named,
    remove_partials,
    write_bytes,
)
from dat_ray.errors import DatError, LeaseLost, StorageError
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
    since: str
    token: str
    beat: int = 0
    # Empty in a record of version 0.1, which named the wall clock at the start instead: that moves, and is not read.
    process: str = ""

    @classmethod
    def this(cls) -> Owner:
        now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()) + " UTC"
        return cls(socket.gethostname(), os.getpid(), now, uuid.uuid4().hex, process=this_process())

    @classmethod
    def read(cls, text: bytes) -> Owner:
        """From a record of any version.

        Raises:
            ValueError, TypeError: it is none.
        """
        tree = parse_object(text)
        return cls(**{field.name: tree[field.name] for field in fields(cls) if field.name in tree})

    def is_gone(self) -> bool | None:
        """Whether the process has ended; None where that cannot be known, as of one on another host."""
        return has_ended(self.pid, self.process) if self.host == socket.gethostname() else None


def _seconds() -> float:
    """A clock that nobody sets, and that goes on while the machine sleeps."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


class Lease:
    """A lease that this process has on a run directory, until it has not been renewed for `STALE_SECONDS`.

    A process that was stopped for longer has lost it, whoever had it meanwhile: it never takes it back.

    Args:
        root: the run directory.
        mine: as it was written.
        written: `_seconds()` before that.
    """

    def __init__(self, root: str, mine: Owner, written: float) -> None:
        self.root, self.mine = root, mine
        self._written, self._beat, self._lost = written, 0, ""

    def check(self) -> None:
        """Before every write.

        Raises:
            LeaseLost: it ran out or was taken over.
        """
        silent = _seconds() - self._written
        if not self._lost and silent > STALE_SECONDS:
            self._lost = f"was not renewed by this process for {silent:.0f} s, so that another one may have it"
        if self._lost:
            raise LeaseLost(f"{self.root} {self._lost}: stopping here; --resume continues, once nobody else works on it")

    def renew(self) -> None:
        """Writes another sign of life. Storage that refuses is asked again next time: several turns fit into a lease.

        Raises:
            LeaseLost: it ran out or was taken over.
        """
        self.check()
        began = _seconds()
        try:
            owner = _read_owner(self.root)
            if owner is None:  # out of reach, being written by somebody else, or removed: not ours to write
                return
            if owner.token != self.mine.token:
                self._lost = f"was taken over by process {owner.pid} on {owner.host}"
                self.check()
            self.check()  # reading may have taken long
            self._beat += 1
            _write_lease(self.root, replace(self.mine, beat=self._beat))
            self._written = began
        except (OSError, StorageError):
            return

    def give_back(self) -> None:
        """Removes the lease, if it is still this process's."""
        with suppress(OSError, LeaseLost):
            self.check()
            owner = _read_owner(self.root)
            if owner is not None and owner.token == self.mine.token:
                fs, inner = open_filesystem(join(self.root, OWNER))
                fs.delete_file(inner)


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
            # What writers left that were killed; whoever still wrote lost its place with the lock.
            remove_partials(place)
            yield
        finally:
            _held.discard(place)


@contextmanager
def _locked(root: str) -> Iterator[None]:
    with refusals_named(root):
        os.makedirs(root, exist_ok=True)
        lock = file_lock(join(root, LOCK))
        try:
            locks = try_lock(lock)
        except Timeout:
            raise _in_use(root, _read_owner(root)) from None
    if not locks:
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
    lease, stop = _take(root, Owner.this()), threading.Event()

    def renew() -> None:
        while not stop.wait(RENEW_SECONDS):
            try:
                lease.renew()
            except LeaseLost as lost:
                stage_line(str(lost))
                _stop_this_process()
                return

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        with guarded(root, lease.check):
            yield
    finally:
        stop.set()
        thread.join()
        lease.give_back()


def _stop_this_process() -> None:
    """As a scheduler would: SIGTERM, which the verbs unwind on. A shell that starts a process in the background has it
    ignore SIGINT, so that one may never arrive."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGTERM)


def _take(root: str, mine: Owner) -> Lease:
    seen, since = _read_owner(root), _seconds()
    while True:
        if seen is None or seen.is_gone() or _seconds() - since > STALE_SECONDS:
            written = _seconds()
            _write_lease(root, mine)
            time.sleep(SETTLE_SECONDS)
            now = _read_owner(root)
            if now is not None and now.token == mine.token:
                return Lease(root, mine, written)
            raise _in_use(root, now)
        if seen.is_gone() is False:
            raise _in_use(root, seen)
        if _seconds() - since < SETTLE_SECONDS:
            stage_line(f"{root} was held by process {seen.pid} on {seen.host}: watching for {STALE_SECONDS:g} s whether it lives")
        time.sleep(min(RENEW_SECONDS / 2, SETTLE_SECONDS))
        now = _read_owner(root)
        if now is not None and (now.token, now.beat) != (seen.token, seen.beat):
            raise _in_use(root, now)
        if now is None:
            seen = None


def _write_lease(root: str, owner: Owner) -> None:
    fs, inner = open_filesystem(join(root, OWNER))
    data = json.dumps(asdict(owner)).encode()
    if isinstance(fs, pafs.LocalFileSystem):
        write_bytes(join(root, OWNER), data)
        return
    # One object, whole or not at all; a rename would copy it.
    with refusals_named(join(root, OWNER)), fs.open_output_stream(inner) as stream:
        stream.write(data)


def _read_owner(root: str) -> Owner | None:
    path = join(root, OWNER)
    try:
        return Owner.read(read_bytes(path)) if exists(path) else None
    except (OSError, ValueError, TypeError):  # being written, or deleted since
        return None


def _in_use(root: str, owner: Owner | None) -> DatError:
    who = f"process {owner.pid} on {owner.host} since {owner.since}" if owner else "another process"
    return DatError(f"{root} is in use by {who}: wait until it is done, or end it; a run directory has one driver at a time")
