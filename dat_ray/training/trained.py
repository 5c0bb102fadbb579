"""What a finished training left behind, and whether it is still that."""

from __future__ import annotations

import hashlib

import pyarrow.fs as pafs

from dat_ray.data.shards import ShardFile, join, open_filesystem, read_bytes, read_manifest
from dat_ray.data.storage import answers_of
from dat_ray.errors import ShardError
from dat_ray.training.kept import FOLDER as KEPT
from dat_ray.training.kept import is_kept


def trained_files(root: str) -> list[ShardFile]:
    """The files of the adapter, and of those that were kept on the way to it.

    Args:
        root: folder of the round's training.
    """
    fs, inner = open_filesystem(root)
    found = []
    for folder in ("adapter", KEPT):
        with answers_of(root):
            below = fs.get_file_info(pafs.FileSelector(f"{inner}/{folder}", recursive=True, allow_not_found=True))
        found += [info.path[len(inner) :].lstrip("/") for info in below if info.is_file]
    # What a kill left half written has another name than `kept_name` gives.
    names = sorted(name for name in found if not name.startswith(KEPT) or is_kept(name))
    return [ShardFile(name, 1, hashlib.sha256(read_bytes(join(root, name))).hexdigest()) for name in names]


def check_trained(root: str, mark: str) -> None:
    """Checks that every byte of a finished training's adapters is as it was: only then is its stage skipped, or exported.

    Args:
        root: folder of the round's training.
        mark: fingerprint of the run's recipe.

    Raises:
        ShardError: one is missing or was altered, or the training is another recipe's or has not finished.
    """
    expected = {file.path: file.sha256 for file in read_manifest(root, fingerprint=mark).files}
    found = {file.path: file.sha256 for file in trained_files(root)}
    wrong = sorted(path for path, digest in expected.items() if found.get(path) != digest)
    if wrong:
        raise ShardError(f"{join(root, wrong[0])} is missing or was altered: remove {root} and train again")
