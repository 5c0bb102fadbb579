"""Which models an evaluation compares: the run's own pair, or those that a user names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from dat_ray.config.evaluation import READY_PREFIX
from dat_ray.config.models import TargetConfig
from dat_ray.config.names import MODEL_REMEDY, is_model_name
from dat_ray.config.schema import Recipe
from dat_ray.data.ids import row_id
from dat_ray.data.prompt_files import read_prompts
from dat_ray.data.rundir import RunDir, last_round, read_record
from dat_ray.data.shards import exists, join, list_folder, open_filesystem
from dat_ray.data.storage import answers_of
from dat_ray.errors import InputError
from dat_ray.models.adapter_settings import ADAPTER_CONFIG, ADAPTER_RECORD, read_adapter_settings
from dat_ray.models.hub import split_revision, with_revision
from dat_ray.models.identity import pinned_revision, recorded_weights

BASE, ADAPTED = "base", "adapted"
# In place of a model: the answers that came with files of prompts.
COMPLETIONS = "completions"
OPTION = "--models"


@dataclass(frozen=True)
class Model:
    """A model under evaluation.

    Attributes:
        name: `base`, `adapted`, or as the user named it.
        adapter: LoRA adapter folder; None for the model as it is.
        weights: changes with the weights.
        source: hub id or folder of a model other than the recipe's target, with or without @REVISION; None for that one.
        answers: names of the attacks whose files hold its answers, where it is not asked at all; None for a model that is.
    """

    name: str
    adapter: str | None
    weights: str
    source: str | None = None
    answers: tuple[str, ...] | None = None

    def config(self, target: TargetConfig) -> TargetConfig:
        """How it is served: as the recipe's target is."""
        if self.source is None:
            return target
        model, revision = split_revision(self.source)
        return target.model_copy(update={"model": model, "revision": revision})


def own_models(recipe: Recipe, run: RunDir) -> list[Model]:
    """The untouched target and the one that this run fine-tuned.

    Raises:
        InputError: no adapter yet.
    """
    return [Model(BASE, None, recipe.target.model), adapted_model(ADAPTED, recipe, run)]


def adapted_model(name: str, recipe: Recipe, run: RunDir) -> Model:
    """The one that a run of the recipe's own target fine-tuned.

    Raises:
        InputError: no adapter yet.
    """
    return _with_adapter(name, _result(run, recipe), None)


def kept_model(name: str, folder: str) -> Model:
    """The run's own target with an adapter that a training kept on its way.

    Raises:
        InputError: there is no adapter in the folder.
    """
    return _with_adapter(name, folder, None)


def _result(run: RunDir, recipe: Recipe) -> str:
    """The adapter of a run's last round, by the recipe that it was begun with."""
    return run.adapter(last_round(read_record(run).recipe if exists(run.record) else recipe))


def named_models(recipe: Recipe, text: str) -> list[Model]:
    """Reads `base=base,dat=runs/first,cat=org/model`: the first model is the one the others are compared with.

    Args:
        recipe: gives the target that `base` and an adapter folder stand on.
        text: NAME=WHAT, separated by commas. WHAT is `base`, a run directory, an adapter folder, a model folder, a
            hub id of a model or of an adapter that names its base, with or without @REVISION, or `embedded:NAME`; or
            `completions`, `completions:FILE` for the answers that the files of `evaluation.prompts`, or the one of that
            name, came with.

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
    if what.partition(":")[0] == COMPLETIONS:
        return _of_files(recipe, name, what)
    if exists(RunDir(what).record):
        run = RunDir(what.rstrip("/"))
        trained, own = read_record(run).recipe.target, recipe.target
        if (trained.model, trained.revision) == (own.model, own.revision):
            return _with_adapter(name, _result(run, recipe), None)
        revision = pinned_revision(trained, recorded_weights(run.root).get("target.model"), OPTION)
        return _with_adapter(name, _result(run, recipe), with_revision(trained.model, revision))
    if exists(join(what, ADAPTER_CONFIG)):
        settings = read_adapter_settings(what, OPTION)
        if exists(join(what, ADAPTER_RECORD)) or not settings.get("base_model_name_or_path"):
            return _with_adapter(name, what, None)
        # Of a base of its own, by which it is merged.
        where = what if "://" in what else str(Path(what).expanduser().absolute())
        return Model(name, None, what, where)
    from dat_ray.models.embedded import resolve_model

    resolved = resolve_model(split_revision(what)[0], OPTION)
    if Path(resolved).is_dir() and not (Path(resolved) / "config.json").is_file():
        raise InputError(OPTION, what, "holds no run, adapter or model: it has no run.json, adapter_config.json or config.json")
    # Workers may run in another folder than ours.
    source = resolved if Path(what).expanduser().is_dir() else what
    return Model(name, None, what, source)


def _of_files(recipe: Recipe, name: str, what: str) -> Model:
    """A model that is known by the answers in files of prompts alone; its weights are their digest."""
    wanted = what.partition(":")[2]
    files = {
        number: file
        for number, file in enumerate(recipe.evaluation.prompts)
        if "prompts" in recipe.evaluation.attacks and (not wanted or file.attack == f"{READY_PREFIX}{wanted}")
    }
    digests = {}
    for number, file in files.items():
        found = read_prompts(file, f"evaluation.prompts.{number}")
        if any(row.completion is not None for row in found.rows):
            digests[file.attack] = found.digest
    if not digests:
        names = ", ".join(file.attack.removeprefix(READY_PREFIX) for file in recipe.evaluation.prompts)
        remedy = "holds no completions" if files else f"names none of the files of evaluation.prompts ({names or 'none'})"
        raise InputError(OPTION, what, f"{remedy}: list a file with completions there, and prompts in evaluation.attacks")
    return Model(name, None, row_id("completions", *digests, *digests.values()), answers=tuple(digests))


def _with_adapter(name: str, folder: str, source: str | None) -> Model:
    found = folder if "://" in folder else str(Path(folder).expanduser().absolute())
    return Model(name, found, adapter_digest(found), source)


def adapter_digest(folder: str) -> str:
    """16 hex digits of the sha256 over an adapter folder's files `adapter_*`, by name.

    Raises:
        InputError: there is no adapter in the folder.
    """
    files = (info for info in list_folder(folder) if info.base_name.startswith("adapter_"))
    found = sorted(files, key=lambda info: info.base_name)
    if not found:
        raise InputError("--run-dir", folder, "holds no adapter: run `dat train` on this run directory first")
    digest, (fs, _) = hashlib.sha256(), open_filesystem(folder)
    for info in found:
        digest.update(info.base_name.encode())
        with answers_of(join(folder, info.base_name)), fs.open_input_stream(info.path) as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()[:16]
