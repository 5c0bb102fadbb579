"""Which models an evaluation compares: the run's own pair, or those that a user names."""

from __future__ import annotations

from pathlib import Path

from dat_ray.config.names import MODEL_REMEDY, is_model_name
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import FIRST_ROUND, RunDir, read_record
from dat_ray.data.shards import exists, join
from dat_ray.errors import InputError
from dat_ray.evaluation.asking import Model
from dat_ray.evaluation.weights import adapter_digest
from dat_ray.models.adapter_settings import ADAPTER_CONFIG, read_adapter_settings

BASE, ADAPTED = "base", "adapted"
OPTION = "--models"


def own_models(recipe: Recipe, run: RunDir) -> list[Model]:
    """The untouched target and the one that this run fine-tuned.

    Raises:
        InputError: no adapter yet.
    """
    return [Model(BASE, None, recipe.target.model), _with_adapter(ADAPTED, recipe, run.adapter(FIRST_ROUND), None)]


def named_models(recipe: Recipe, text: str) -> list[Model]:
    """Reads `base=base,dat=runs/first,cat=org/model`: the first model is the one the others are compared with.

    Args:
        recipe: gives the target that `base` and an adapter folder stand on.
        text: NAME=WHAT, separated by commas. WHAT is `base`, a run directory, an adapter folder, a model folder, a
            hub id or `embedded:NAME`.

    Raises:
        InputError: not of that form, a name twice, or a folder that is none of these.
    """
    found: list[Model] = []
    for part in text.split(","):
        name, equals, what = (piece.strip() for piece in part.partition("="))
        if not equals or not what:
            raise InputError(OPTION, part, "write NAME=WHAT, with WHAT one of base, a run directory, a folder or a hub id")
        if not is_model_name(name):
            raise InputError(OPTION, name, MODEL_REMEDY)
        if name in [model.name for model in found]:
            raise InputError(OPTION, name, "names two models: give each its own name")
        found.append(_resolve(recipe, name, what))
    return found


def _resolve(recipe: Recipe, name: str, what: str) -> Model:
    if what == BASE:
        return Model(name, None, recipe.target.model)
    if exists(RunDir(what).record):
        run = RunDir(what.rstrip("/"))
        trained = read_record(run).recipe.target.model
        source = None if trained == recipe.target.model else trained
        return _with_adapter(name, recipe, run.adapter(FIRST_ROUND), source)
    if exists(join(what, ADAPTER_CONFIG)):
        read_adapter_settings(what, OPTION)
        return _with_adapter(name, recipe, what, None)
    from dat_ray.models.embedded import resolve_model

    resolved = resolve_model(what, OPTION)
    if Path(resolved).is_dir() and not (Path(resolved) / "config.json").is_file():
        raise InputError(OPTION, what, "holds no run, adapter or model: it has no run.json, adapter_config.json or config.json")
    # Workers may run in another folder than ours.
    source = resolved if Path(what).expanduser().is_dir() else what
    return Model(name, None, what, source)


def _with_adapter(name: str, recipe: Recipe, folder: str, source: str | None) -> Model:
    found = folder if "://" in folder else str(Path(folder).expanduser().absolute())
    return Model(name, found, adapter_digest(found), source)
