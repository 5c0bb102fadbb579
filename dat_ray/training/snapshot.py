"""Ray Train's list of checkpoints, as it lies in a run directory: Ray reads and deletes the folders that it names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

from dat_ray.config.names import is_name
from dat_ray.data.shards import exists, join, read_bytes
from dat_ray.errors import DatError

_FOLDER, _FOLDERS = "checkpoint_dir_name", "checkpoint_dir_names"


def check_snapshot(storage: str, name: str) -> None:
    """Checks that the list, where there is one, names nothing outside its own folder. What makes no sense is Ray's to refuse.

    Args:
        storage: local path or URI that Ray Train stores below.
        name: of the training.

    Raises:
        DatError: it was altered.
    """
    path = join(storage, name, CHECKPOINT_MANAGER_SNAPSHOT_FILENAME)
    if not exists(path):
        return
    try:
        tree = json.loads(read_bytes(path))
    except (ValueError, RecursionError):
        return
    for folder in _folders(tree):
        if not is_name(folder):
            raise DatError(
                f"{path} names a checkpoint {ascii(folder)[:100]}, which is no folder beside it: it was altered, and Ray would "
                "read and delete there; remove that training folder and train again"
            )


def _folders(tree: Any) -> Iterator[Any]:
    if isinstance(tree, list):
        for value in tree:
            yield from _folders(value)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            if key == _FOLDER:
                yield value
            elif key.endswith(_FOLDERS) and isinstance(value, list):
                yield from value
            elif key != "metrics":
                yield from _folders(value)
