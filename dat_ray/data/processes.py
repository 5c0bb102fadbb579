"""Which process is meant, and whether it has ended.

A process id is used again, and the time at which a process began moves with the wall clock. On Linux a process is known
by the ticks since boot at which it began, in one boot, in one space of process ids.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil

_PROC = Path("/proc")
# Fields of /proc/PID/stat behind the name, which may hold spaces and brackets: the state is the third of all, the start the 22nd.
_STATE, _START = 0, 19
_DEAD = ("Z", "X", "x")


def space() -> str:
    """This boot of this machine, and the space in which its process ids count; empty where that cannot be known."""
    with suppress(OSError):
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    return ""


def start_of(pid: int) -> int | None:
    """Ticks after boot at which a living process began; None where there is none.

    Raises:
        OSError: this system does not tell.
    """
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        if not (_PROC / "self/stat").exists():
            raise
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[_STATE] in _DEAD else int(fields[_START])


def this_process() -> str:
    """A name of this process that no other one has; empty where the system gives none."""
    with suppress(OSError):
        start = start_of(os.getpid())
        if space() and start is not None:
            return f"{space()} {start}"
    return ""


def has_ended(pid: int, process: str) -> bool | None:
    """Whether the process of this id and `this_process()` name has ended; None where that cannot be known from here.

    Without a name, only an id that nobody has says something.
    """
    where, _, start = process.rpartition(" ")
    if process and where == space():
        with suppress(OSError):
            return start_of(pid) != int(start)
    if process:  # another boot, or another container
        return None
    return None if psutil.pid_exists(pid) else True
