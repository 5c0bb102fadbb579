"""Folders that are built once and appear whole: a lock, a build beside, then a rename.

A finished folder holds `complete.json`: the key it was built from and the size of every file. A reader that
finds another key, a missing file or a shorter one treats the folder as absent.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from dat_ray.cache import check_cache
from dat_ray.data.file_locks import file_lock, try_lock
from dat_ray.data.scratch import is_abandoned, scratch_folder
from dat_ray.errors import DatError
from dat_ray.json_text import parse_object

MARKER = "complete.json"
FORMAT_VERSION = 1
LOCK_WAIT_S = 600.0
# Where the content that is replaced waits until the new one has its name.
_OLD = "old"

log = logging.getLogger(__name__)


def is_complete(folder: Path, key: Mapping[str, str]) -> bool:
    """Whether `folder` was finished from exactly `key` and still holds every file at its size."""
    try:
        marker = parse_object((folder / MARKER).read_bytes())
        if marker["format_version"] != FORMAT_VERSION or marker["key"] != dict(key):
            return False
        return all((folder / name).stat().st_size == size for name, size in marker["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def build_once(folder: Path, key: Mapping[str, str], build: Callable[[Path], None], *, lock_wait_s: float = LOCK_WAIT_S) -> bool:
    """Makes sure that `folder` is complete for `key`, building it at most once over all processes.

    On a file system without locks several may build it, each apart; the last one's takes the name.

    Args:
        folder: where the result belongs; replaced as a whole when it is there for another key or damaged.
        key: what determines the content (checksums, dtype, ...), compared at each call.
        build: fills the empty folder that it is given.
        lock_wait_s: seconds to wait for another process that builds the same folder.

    Returns:
        True if this call built it, False if it was there.

    Raises:
        DatError: the lock was not free in time.
        InputError: the folder cannot be written.
    """
    if is_complete(folder, key):
        return False
    check_cache(folder.parent)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _one_builder(folder, lock_wait_s) as alone:
        if is_complete(folder, key):
            return False
        # Whoever held the lock before and was killed, on whatever machine, left its unfinished folder behind.
        for leftover in _unfinished(folder) if alone else ():
            shutil.rmtree(leftover, ignore_errors=True)
        log.info("building %s", folder)
        with replace_folder(folder) as scratch:
            build(scratch)
            files = {str(p.relative_to(scratch)): p.stat().st_size for p in sorted(scratch.rglob("*")) if p.is_file()}
            marker = {"format_version": FORMAT_VERSION, "key": dict(key), "files": files}
            (scratch / MARKER).write_text(json.dumps(marker, indent=1), encoding="utf-8")
        return True


@contextmanager
def _one_builder(folder: Path, lock_wait_s: float) -> Iterator[bool]:
    """Waits until no other process builds `folder`; yields whether that can be known."""
    lock = file_lock(folder.parent / f".{folder.name}.lock")
    try:
        locks = try_lock(lock)
    except Timeout:
        log.warning("waiting for another process that builds %s", folder)
        try:
            locks = try_lock(lock, lock_wait_s)
        except Timeout as error:
            raise DatError(
                f"waited {lock_wait_s:.0f} s for another process to build {folder}: see who holds {lock.lock_file}"
            ) from error
    if not locks:
        log.warning("%s is on a file system without locks: others may build %s at the same time", folder.parent, folder.name)
    try:
        yield locks
    finally:
        lock.release()


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder beside `folder`; on success it is flushed to disk and takes that name.

    A reader sees the old content or the new, never a mixture. An error or a signal leaves the old content as it was. What a
    killed process of this machine left beside it is removed by the next call, which first puts back an old content that
    the kill found between the two renames.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in filter(is_abandoned, _unfinished(folder)):
        _put_back(left / _OLD, folder)
    with scratch_folder(_prefix(folder), folder.parent) as scratch:
        yield scratch
        # Some writers make private files, but a cache is read by every user whom the umask lets in.
        umask = os.umask(0)
        os.umask(umask)
        for path in scratch.rglob("*"):
            if path.is_file():
                path.chmod(0o666 & ~umask)
            _fsync(path)
        _fsync(scratch)
        old = scratch.with_name(_OLD)
        try:
            if folder.exists():
                os.rename(folder, old)
            os.rename(scratch, folder)
        except BaseException:
            _put_back(old, folder)
            raise
        _fsync(folder.parent)


def _prefix(folder: Path) -> str:
    return f".{folder.name}.building-"


def _unfinished(folder: Path) -> list[Path]:
    return list(folder.parent.glob(f"{glob.escape(_prefix(folder))}*"))


def _put_back(old: Path, folder: Path) -> None:
    if old.exists() and not folder.exists():
        os.rename(old, folder)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
