"""Numbered checkpoint folders that know when they are damaged, and the way back to the newest one that is not.

A folder's `state.json` is written last and holds the sha256 of every other file and of itself, so that a kill, a full disk
or a flipped bit at any place is seen. Folders of version 0.1 have no sums: of them it is known whether they can be read.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
from safetensors import SafetensorError

from dat_ray.data.scratch import scratch_folder
from dat_ray.data.shards import check_guards, join, open_filesystem, partial_name, refusals_named
from dat_ray.data.storage import answers_of
from dat_ray.errors import DamagedCheckpoint
from dat_ray.progress import stage_line

STATE = "state.json"
KEPT = 2
_SUMS, _SEAL = "sha256", "seal"


def seal(folder: Path, state: dict[str, Any]) -> None:
    """Ends the writing of a local checkpoint folder.

    Args:
        folder: holds all other files.
        state: becomes `state.json`, beside the sums.
    """
    sums = {path.name: _digest(path) for path in sorted(folder.iterdir())}
    tree = {**state, _SUMS: sums}
    (folder / STATE).write_text(json.dumps({**tree, _SEAL: _seal_of(tree)}), encoding="utf-8")


def read_sealed(folder: Path) -> dict[str, Any]:
    """The state of a local checkpoint folder whose every byte is as it was written.

    Raises:
        DamagedCheckpoint: it is not.
    """
    try:
        tree = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise ValueError(f"{STATE} is no mapping")
        found = tree.pop(_SEAL, None)
        if found is None and _SUMS not in tree:  # of version 0.1
            return tree
        if found != _seal_of(tree):
            raise ValueError(f"{STATE} was altered")
        for name, digest in tree[_SUMS].items():
            if _digest(folder / name) != digest:
                raise ValueError(f"{name} was altered or cut short")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}") from None
    return tree


def _seal_of(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def list_checkpoints(root: str, pattern: str) -> list[str]:
    """Names of the folders in `root` that match the whole pattern, oldest first."""
    fs, inner = open_filesystem(root)
    with answers_of(root):
        found = fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
    return sorted(info.base_name for info in found if not info.is_file and re.fullmatch(pattern, info.base_name))


def load_newest(root: str, names: Sequence[str], read: Callable[[Path], int], unit: str) -> tuple[int, str | None]:
    """Reads the newest checkpoint that can be read; says which were damaged, and where the work goes on.

    Args:
        root: folder of the checkpoints, local or a URI.
        names: its checkpoints, oldest first.
        read: restores from a local folder and returns how much was done; changes nothing where it raises `DamagedCheckpoint`.
        unit: what is counted, as `update`.

    Returns:
        What `read` returned, 0 where none could be read; and that checkpoint's name.
    """
    damaged: list[str] = []
    for name in reversed(names):
        try:
            done = read_at(root, name, read)
        except DamagedCheckpoint as error:
            damaged.append(f"{join(root, name)} ({error})")
            continue
        if damaged:
            stage_line(f"checkpoint damaged: {'; '.join(damaged)}: going on from {unit} {done}, {join(root, name)}")
        return done, name
    if damaged:
        stage_line(f"checkpoint damaged: {'; '.join(damaged)}: no other one is readable, starting again from {unit} 0")
    return 0, None


def read_at(root: str, name: str, read: Callable[[Path], int]) -> int:
    """Reads one checkpoint, through a local copy where it lies elsewhere.

    Raises:
        DamagedCheckpoint: as `read` says.
    """
    fs, inner = open_filesystem(join(root, name))
    if isinstance(fs, pafs.LocalFileSystem):
        return read(Path(inner))
    with scratch_folder("dat-checkpoint-") as scratch:
        with answers_of(join(root, name)):
            pafs.copy_files(inner, str(scratch), source_filesystem=fs, destination_filesystem=pafs.LocalFileSystem())
        return read(scratch)


def save_at(root: str, name: str, write: Callable[[Path], None]) -> None:
    """Writes one checkpoint to its place.

    Args:
        root: folder of the checkpoints, local or a URI.
        name: of the new one.
        write: fills an empty local folder.

    Raises:
        StorageError: the storage refuses.
    """
    fs, inner = open_filesystem(join(root, name))
    with refusals_named(join(root, name)):
        if not isinstance(fs, pafs.LocalFileSystem):
            with scratch_folder("dat-checkpoint-") as scratch:
                _filled(write, scratch)
                publish_folder(scratch, join(root, name))
            return
        check_guards(inner)
        partial = Path(partial_name(inner))
        partial.mkdir(parents=True)
        try:
            _filled(write, partial)
            _replace(partial, Path(inner))
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _filled(write: Callable[[Path], None], folder: Path) -> None:
    try:
        write(folder)
    except SafetensorError as error:  # how it says that the disk is full
        raise OSError(str(error)) from error


def drop_checkpoints(root: str, names: Sequence[str], newest: str) -> None:
    """Removes all but the newest `KEPT` up to the one that was just written, and what lies after it: those were damaged."""
    fs, inner = open_filesystem(root)
    last = names.index(newest)
    with refusals_named(root):
        for name in [*names[: max(0, last + 1 - KEPT)], *names[last + 1 :]]:
            fs.delete_dir(join(inner, name))


def publish_folder(folder: Path, destination: str) -> None:
    """Copies a local folder to its place in the run directory; on a local disk whole or not at all."""
    fs, inner = open_filesystem(destination)
    local = isinstance(fs, pafs.LocalFileSystem)
    place = partial_name(inner) if local else inner
    with refusals_named(destination):
        check_guards(destination)
        if not local and fs.get_file_info(inner).type != pafs.FileType.NotFound:
            fs.delete_dir(inner)
        try:
            fs.create_dir(place, recursive=True)
            pafs.copy_files(str(folder), place, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=fs)
            if local:
                _replace(Path(place), Path(inner))
        except BaseException:
            if local:
                shutil.rmtree(place, ignore_errors=True)
            raise


def _replace(partial: Path, place: Path) -> None:
    """A folder of the same name goes first: it was made for the same content."""
    check_guards(str(place))
    if place.exists():
        aside = Path(partial_name(str(place)))
        place.rename(aside)
        partial.rename(place)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        partial.rename(place)
