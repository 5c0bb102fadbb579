"""What run directories have in common is made once and copied into each: a run directory stands alone, on any storage."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence

import pyarrow.fs as pafs

from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import FIRST_ROUND, RunDir
from dat_ray.data.shards import (
    exists,
    has_manifest,
    join,
    list_folder,
    open_filesystem,
    read_bytes,
    read_file,
    read_manifest,
    write_bytes,
    write_file,
    write_manifest,
)
from dat_ray.data.storage import answers_of
from dat_ray.data.stored import stored_lines, well_formed
from dat_ray.errors import InputError
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.drawn_prompts import FILE as DIAGNOSTICS
from dat_ray.evaluation.results import load_metrics
from dat_ray.models.identity import RECORD as WEIGHTS
from dat_ray.training.retain_set import retain_folder

# Of a shard with the rows of one run's model, or of the base model on one run's prompts: ARM@SEED, and no arm has a hyphen.
_OF_RUN = re.compile(r"-([^-@]+@[^-]+)-")


def check_empty(root: str, option: str) -> None:
    """Raises InputError where a folder of several runs holds something that `--resume` was not given for."""
    if list_folder(root):
        raise InputError(option, root, "is not empty: choose another directory, or add --resume to continue there")


def take_over(sources: Sequence[RunDir], run: RunDir, recipe: Recipe, suite: str | None = None) -> None:
    """Copies behaviors, candidates, retain set and, of a suite, the base model's evaluation shards into a run directory.

    The rows are what the run would make itself: their ids hash what determines them, and the run's own stages check those ids.

    Args:
        sources: what is shared; each holds some of it.
        run: whose directory it is copied into; what is there already stays.
        recipe: of `run`.
        suite: name of an evaluation that a source holds of the base model; None where there is none.
    """
    _take_over_costs(sources, run)
    for source in sources:
        if exists(source.behaviors) and not exists(run.behaviors):
            write_file(run.behaviors, read_file(source.behaviors))
        _take_over_weights(source.root, run.root)
        for folder in (RunDir.candidates, retain_folder):
            _take_over_folder(folder(source, FIRST_ROUND), folder(run, FIRST_ROUND), run.fingerprint_of(recipe))
        if suite is not None:
            _take_over_answers(source.evaluation(suite), run.evaluation(suite))


def take_over_models(run: RunDir, recipe: Recipe, suite: str, models: Sequence[Model]) -> None:
    """Copies an evaluation's shards of these models from the run directories beside one: what has been asked is not asked again.

    The ids of the rows hold suite, prompt and weights, and the evaluation checks them. Rows of a model that has been trained
    again since stay where they are: it would be refused with them, however often its folder is removed.

    Args:
        run: whose directory it is copied into; those beside it are evaluations of other sets of models.
        recipe: of `run`; what belongs to another one stays where it is.
        suite: name of the evaluation in each.
        models: whose shards are wanted, with the weights that they have now.
    """
    weights = {model.name: model.weights for model in models}
    parent, _, own = run.root.rstrip("/").rpartition("/")
    for info in list_folder(parent):
        old = RunDir(join(parent, info.base_name)).evaluation(suite)
        if info.base_name != own and has_manifest(old) and read_manifest(old).fingerprint == run.fingerprint_of(recipe):
            asked = load_metrics(old).models
            unchanged = {name for name, one in asked.items() if weights.get(name) == one.weights}
            _take_over_answers(old, run.evaluation(suite), unchanged)


def _take_over_folder(old: str, new: str, fingerprint: str) -> None:
    """A finished folder of shards, under the fingerprint of its new run."""
    if not has_manifest(old) or has_manifest(new):
        return
    files = read_manifest(old).files
    extra = [DIAGNOSTICS] if exists(join(old, DIAGNOSTICS)) else []
    for name in [*(file.path for file in files), *extra]:
        write_bytes(join(new, name), read_bytes(join(old, name)))
    write_manifest(new, list(files), fingerprint)


def _take_over_answers(old: str, new: str, models: Collection[str] | None = None) -> None:
    """The shards of an evaluation, which others of the run's own follow: no manifest yet."""
    if not has_manifest(old) or has_manifest(new):
        return
    for name in _shards_below(old):
        model = _OF_RUN.search(name.rpartition("/")[2])
        if models is not None and model is not None and model[1] not in models:
            continue
        if not exists(join(new, name)):
            write_bytes(join(new, name), read_bytes(join(old, name)))
    _take_over_weights(old, new)


def _take_over_weights(source: str, folder: str) -> None:
    """Which weights gave the rows that are taken over, so that a run does not go on with others."""
    old, new = join(source, WEIGHTS), join(folder, WEIGHTS)
    if exists(old) and not exists(new):
        write_bytes(new, read_bytes(old))


def _take_over_costs(sources: Sequence[RunDir], run: RunDir) -> None:
    """Tells in a run's log what the shared stages cost, once, under names of their own."""
    new, told = join(run.logs, "stages.jsonl"), list[str]()
    for old in (join(source.logs, "stages.jsonl") for source in sources):
        if exists(old):
            with well_formed(old):
                told += [json.dumps(line | {"stage": f"{line['stage']} (shared)"}) + "\n" for line in stored_lines(old)]
    if told and not exists(new):
        write_bytes(new, "".join(told).encode())


def _shards_below(root: str) -> list[str]:
    fs, inner = open_filesystem(root)
    with answers_of(root):
        found = fs.get_file_info(pafs.FileSelector(inner, recursive=True))
    return sorted(info.path[len(inner) :].lstrip("/") for info in found if info.path.endswith(".parquet"))
