"""What goes along with a job: the files of a folder, without what no job needs, and how large they are."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ray._private.runtime_env import packaging

from dat_ray.errors import InputError

# gitignore patterns. Our own adapted sampler is part of the package and far below the limit; other weights are not ours.
EXCLUDES = (
    ".git/",
    ".venv/",
    "venv/",
    "runs/",
    "build/",
    "dist/",
    "node_modules/",
    "wandb/",
    "*.egg-info/",
    "__pycache__/",
    ".*_cache/",
    ".hypothesis/",
    ".cache/",
    "*.safetensors",
    "!dat_ray/models/weights/**/*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.gguf",
    ".env",
    ".env.*",
    "*.pem",
)
LARGEST_NAMED = 5


@dataclass(frozen=True)
class Package:
    """A packed folder.

    Attributes:
        path: the zip file.
        bytes: its size.
        files: how many files it holds.
    """

    path: str
    bytes: int
    files: int


def upload_limit() -> int:
    """Bytes that Ray's head takes at once."""
    return packaging.GCS_STORAGE_MAX_SIZE


def pack(folder: str, into: str) -> Package:
    """Packs a folder as Ray would, `.gitignore` and `.rayignore` respected.

    Args:
        folder: becomes the job's working directory.
        into: existing folder for the zip file.

    Raises:
        InputError: no such folder, or too large for Ray's head; names the largest files.
    """
    if not Path(folder).is_dir():
        raise InputError("--working-dir", folder, "no such folder: give the one that holds the recipe")
    target = Path(into) / "working_dir.zip"
    sizes = _sizes(folder)
    # Counted before they are zipped: packing gigabytes only to refuse them takes minutes. Text shrinks four times at most.
    if sum(sizes.values()) < 4 * upload_limit():
        packaging.create_package(folder, target, include_gitignore=True, excludes=list(EXCLUDES))
        packed = target.stat().st_size
        if packed < upload_limit():
            return Package(str(target), packed, len(sizes))
    else:
        packed = sum(sizes.values())
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:LARGEST_NAMED]
    named = ", ".join(f"{name} ({size / 2**20:.1f} MiB)" for name, size in largest)
    raise InputError(
        "--working-dir",
        folder,
        f"{packed / 2**20:.0f} MiB, Ray's head takes {upload_limit() / 2**20:.0f}; the largest: {named}: list them in "
        ".rayignore, put data on the shared storage, or give a smaller folder",
    )


def _sizes(folder: str) -> dict[str, int]:
    """Bytes of every file that would go along, by its path relative to the folder."""
    root = Path(folder).absolute()
    found: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            found[os.path.relpath(path, root)] = path.stat().st_size

    excludes = [packaging._get_excludes(root, list(EXCLUDES))]
    packaging._dir_travel(root, excludes, note, include_gitignore=True)
    return found


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for the zip file."""
    return tempfile.TemporaryDirectory(prefix="dat-submit-")
