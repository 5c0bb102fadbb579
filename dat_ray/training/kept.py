"""Adapters along a training: what it kept after every N updates, beside the one it ends with."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dat_ray.config.schema import Recipe
from dat_ray.data.checkpoints import publish_folder
from dat_ray.data.rundir import RunDir, rounds_begun
from dat_ray.data.shards import join, read_manifest
from dat_ray.training.update_metrics import read_metrics

FOLDER = "kept"
_NAME = re.compile(rf"{FOLDER}/update-\d{{8}}/[^/]+")


def kept_name(updates_done: int) -> str:
    """Of the folder with the adapter after that many updates of its round, below a training's."""
    return f"{FOLDER}/update-{updates_done:08d}"


def is_kept(path: str) -> bool:
    """Whether a path below a training's folder is that of a file of a kept adapter."""
    return _NAME.fullmatch(path) is not None


@dataclass(frozen=True)
class AdapterKeeper:
    """Keeps the adapter after every `every` updates but the last, after which it is the training's own.

    Each is whole or not there on a local disk; where a kill left part of one elsewhere, the training comes by it again: the
    next checkpoint is written later.

    Attributes:
        root: of the training, local or a URI.
        every: updates between two.
        updates: how many the training has.
        save: writes the adapter as it is now into a local folder.
        scratch: local folder for it.
    """

    root: str
    every: int
    updates: int
    save: Callable[[str], None]
    scratch: Path

    def __call__(self, updates_done: int) -> None:
        """Called after each update, before a checkpoint of it.

        Raises:
            StorageError: the storage refuses.
        """
        if updates_done % self.every or updates_done == self.updates:
            return
        folder = self.scratch / FOLDER
        self.save(str(folder))
        publish_folder(folder, join(self.root, kept_name(updates_done)))


def adapters_along(run: RunDir, recipe: Recipe) -> dict[int, str]:
    """Updates of all rounds so far to the adapter after them, of a training that is finished: kept ones and those of the rounds.

    Args:
        run: its directory.
        recipe: with which it was trained.

    Raises:
        ShardError: a round has not been trained.
    """
    found: dict[int, str] = {}
    before = 0
    for index in rounds_begun(run, recipe):
        root = run.training(index)
        files = read_manifest(root, fingerprint=run.fingerprint_of(recipe)).files
        names = sorted({file.path.rpartition("/")[0] for file in files if file.path.startswith(f"{FOLDER}/")})
        found |= {before + int(name.rpartition("-")[2]): join(root, name) for name in names}
        before += len(read_metrics(root))
        found[before] = run.adapter(index)
    return found
