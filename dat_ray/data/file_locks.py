"""Locks that the operating system lets go of when a process ends, where the file system has any."""

from __future__ import annotations

import errno
import os

from filelock import FileLock

# How a file system says that it has none: Lustre without its flock option, some network file systems.
_NONE = frozenset({errno.ENOSYS, errno.EOPNOTSUPP})


def file_lock(path: str | os.PathLike[str]) -> FileLock:
    """A lock on a file, not yet taken; for `try_lock`.

    By itself the library would put up a file in its place where there are no locks, which a killed process leaves behind for
    good.
    """
    return FileLock(path, fallback_to_soft=False)


def try_lock(lock: FileLock, timeout: float = 0.0) -> bool:
    """Takes a lock; whether the file system has any.

    Args:
        lock: of `file_lock`.
        timeout: seconds to wait for another process.

    Raises:
        filelock.Timeout: another process has it.
    """
    try:
        lock.acquire(timeout=timeout)
    except OSError as error:
        if error.errno not in _NONE:
            raise
        return False
    return True
