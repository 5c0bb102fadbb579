"""Everything that a kill, a full disk, a bad disk or a person does to a folder of files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


def damages(folder: Path, flips: int = 40) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Names and actions: each file of a folder cut at several places, emptied, deleted, with single bits flipped over its
    whole length; and the folder itself deleted, emptied, or turned into a file.

    Args:
        folder: an undamaged one, for the names and lengths of its files.
        flips: bits a file.
    """
    for path in sorted(folder.iterdir()):
        name, size = path.name, path.stat().st_size
        for length in sorted({0, 1, 7, 8, 9, size // 2, size - 1}):
            yield f"{name} cut to {length}", _on_file(name, _cut, length)
        for turn in range(flips):
            place = turn * (size - 1) // (flips - 1)
            yield f"{name} bit {turn % 8} of byte {place}", _on_file(name, _flip, place, turn % 8)
        yield f"{name} longer", _on_file(name, _lengthen)
        yield f"{name} deleted", _on_file(name, Path.unlink)
        yield f"{name} a folder", _on_file(name, _make_folder)
    yield "emptied", _empty


def _on_file(name: str, damage: Callable[..., object], *arguments: int) -> Callable[[Path], None]:
    """The action on a folder that damages its file of this name."""

    def act(at: Path) -> None:
        damage(at / name, *arguments)

    return act


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def _flip(path: Path, place: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def copied(folder: Path, to: Path) -> Path:
    """A copy that may be damaged, in the place of an earlier one."""
    if to.exists():
        shutil.rmtree(to)
    shutil.copytree(folder, to)
    return to
