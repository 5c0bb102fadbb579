"""Temporary folders of processes that may be killed: each names its owner, so that what a killed one left can be removed."""

from __future__ import annotations

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
SECONDS_BETWEEN_LOOKS = 0.1


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """An empty local folder inside a `with` block.

    Args:
        prefix: of its name, which begins with `dat-`. What ended processes left under this prefix is removed first.
    """
    remove_abandoned(prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        (folder / OWNER).write_text(json.dumps({"pid": os.getpid(), "process": this_process()}), encoding="utf-8")
        (folder / "files").mkdir()
        yield folder / "files"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(prefix: str, seconds: float = 0.0) -> int:
    """Removes this user's scratch folders on this machine whose processes have ended.

    Args:
        prefix: of their names.
        seconds: how long to wait for processes that are ending.

    Returns:
        How many are left, of processes that live or cannot be seen from here.
    """
    deadline = time.monotonic() + seconds
    while left := sum(not _removed(path) for path in Path(tempfile.gettempdir()).glob(f"{prefix}*")):
        if time.monotonic() >= deadline:
            break
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return left


def _removed(folder: Path) -> bool:
    with suppress(OSError, ValueError, KeyError, TypeError):
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return False
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        if has_ended(int(owner["pid"]), str(owner["process"])):
            shutil.rmtree(folder)
            return True
    return not folder.exists()
