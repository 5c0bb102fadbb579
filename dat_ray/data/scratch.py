"""Temporary folders of processes that may be killed: each names its owner, so that what a killed one left can be removed."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dat_ray.data.processes import has_ended, this_process

OWNER = "owner.json"
FILES = "files"
SECONDS_BETWEEN_LOOKS = 0.1


@contextmanager
def scratch_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """An empty local folder inside a `with` block.

    Args:
        prefix: of its name, which begins with `dat-` where it is temporary. What ended processes left under this prefix is
            removed first.
        parent: the folder that holds it; None for the one of temporary files.
    """
    remove_abandoned(prefix, parent=parent)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        (folder / OWNER).write_text(json.dumps({"pid": os.getpid(), "process": this_process()}), encoding="utf-8")
        (folder / FILES).mkdir()
        yield folder / FILES
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(prefix: str, seconds: float = 0.0, parent: Path | None = None) -> int:
    """Removes this user's scratch folders on this machine whose processes have ended.

    Args:
        prefix: of their names.
        seconds: how long to wait for processes that are ending.
        parent: as for `scratch_folder`.

    Returns:
        How many are left, of processes that live or cannot be seen from here.
    """
    deadline = time.monotonic() + seconds
    where = parent or Path(tempfile.gettempdir())
    while left := sum(not _removed(path) for path in where.glob(f"{glob.escape(prefix)}*")):
        if time.monotonic() >= deadline:
            break
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return left


def is_abandoned(folder: Path) -> bool:
    """Whether a path is a scratch folder of this user whose process has ended on this machine."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        if not folder.is_symlink() and folder.stat().st_uid == os.getuid():
            owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
            return bool(has_ended(int(owner["pid"]), str(owner["process"])))
    return False


def _removed(folder: Path) -> bool:
    if is_abandoned(folder):
        with suppress(OSError):
            shutil.rmtree(folder)
    return not os.path.lexists(folder)
