"""Symbolic links in a run directory: whoever can write there could make a run read and write elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

from dat_ray.errors import InputError


def refuse_links(root: str, field: str = "--run-dir") -> None:
    """Refuses a run directory in which a symbolic link leads out of it: it would be read from, and written to, elsewhere.

    Args:
        root: its path, which may itself be a link, or a URI: an object store has no links.
        field: option to name in an error.

    Raises:
        InputError: there is one; names it.
    """
    if "://" in root:
        return
    home = os.path.realpath(root)
    for folder, folders, files in os.walk(home):  # links to folders are among its folders, and are not followed
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            if os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(home):
                shown = ascii(os.path.relpath(path, home))
                raise InputError(field, root, f"holds a symbolic link that leads out of it, {shown}: put there what it leads to")
