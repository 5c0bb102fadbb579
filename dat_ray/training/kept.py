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
from dat_ray.errors import InputError
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


def adapters_along(run: RunDir, recipe: Recipe, every: int) -> dict[int, str]:
    """Updates of all rounds so far to the adapter after them, of a training that is finished.

    Args:
        run: its directory.
        recipe: with which it was trained.
        every: updates between two adapters of a round; the one that a round ends with is always there.

    Raises:
        InputError: a round kept none of them, or other ones.
        ShardError: a round has not been trained.
    """
    found: dict[int, str] = {}
    before = 0
    for index in rounds_begun(run, recipe):
        root = run.training(index)
        files = read_manifest(root, fingerprint=run.fingerprint_of(recipe)).files
        there = {file.path.rpartition("/")[0] for file in files}
        updates = len(read_metrics(root))
        for done in range(every, updates, every):
            if kept_name(done) not in there:
                remedy = f"{root} kept no adapter after {done} updates: remove it and train again, or leave the adapters out"
                raise InputError("training.keep_every", every, remedy)
            found[before + done] = join(root, kept_name(done))
        before += updates
        found[before] = run.adapter(index)
    return found
