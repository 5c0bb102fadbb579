"""`dat rehearse`: the checks, tiny models, all stages and the export; the first thing that fails is named by stage and engine.

dat rehearse dat-llama3-8b --backend torch
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dat_ray.config.schema import Recipe
from dat_ray.data.behaviors import load_behaviors
from dat_ray.data.retain import load_retain
from dat_ray.data.rundir import RunDir, open_run
from dat_ray.data.shards import write_file
from dat_ray.engines.pinning import JUDGES, prompts_of
from dat_ray.errors import DatError, InputError
from dat_ray.evaluation.lm_eval_tasks import check_tasks
from dat_ray.evaluation.registry import check_attacks
from dat_ray.ops.rows import rows_forecast
from dat_ray.pipeline.export import export_run
from dat_ray.pipeline.stages import STAGES, check_inputs, measured, session
from dat_ray.progress import stage_line
from dat_ray.rehearsal.doubles import Double, make_doubles
from dat_ray.rehearsal.hub_rows import hub_changes
from dat_ray.rehearsal.overlay import Machine, Replaced, rehearsed, replace_values, with_models

_ROLE = re.compile(r"\b(held-out sampler|sampler|target|judge|attacker|encoder|trainer|vLLM|lm-eval)\b")


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal came to.

    Attributes:
        recipe: with everything that was replaced.
        run: its directory.
        doubles: the models.
        replaced: each value that is not the recipe's own.
        forecast: what will be cut and left out of all training rows of the real run.
    """

    recipe: Recipe
    run: RunDir
    doubles: Sequence[Double]
    replaced: Sequence[Replaced]
    forecast: str


def this_machine() -> Machine:
    """What this machine has: GPUs, vLLM, and number formats."""
    import torch

    gpus = torch.cuda.device_count()
    dtypes = {"float32", "float16"} | ({"bfloat16"} if not gpus or torch.cuda.is_bf16_supported() else set())
    return Machine(gpus, find_spec("vllm") is not None, frozenset(dtypes))


def prepare(recipe: Recipe, machine: Machine, backend: str | None = None) -> tuple[Recipe, list[Double], list[Replaced]]:
    """Looks at everything that a recipe names, and makes what it is rehearsed with.

    Args:
        recipe: of the real run.
        machine: at hand.
        backend: of every engine but servers; None for the recipe's own.

    Returns:
        The recipe of the rehearsal, the models, and each value that was replaced.

    Raises:
        InputError: what the real run would be refused for, named by its field.
    """
    check_attacks(recipe)
    check_tasks(recipe.evaluation.utility)
    small, replaced = rehearsed(recipe, machine, backend)
    prompts_of(small, *JUDGES)
    doubles = list(make_doubles(small))
    folders = {double.section: double.folder for double in doubles if double.folder is not None}
    for changed, more in (with_models(small, folders), replace_values(small, hub_changes(small))):
        replaced += more
        small, _ = replace_values(changed, {one.path: (one.after, one.reason) for one in replaced})
    return small, doubles, replaced


def rehearse(recipe: Recipe, root: str, backend: str | None = None) -> Rehearsal:
    """Runs every stage of a recipe once, small.

    Args:
        recipe: of the real run.
        root: a folder that is new or empty.
        backend: as for `prepare`.

    Raises:
        InputError: as `prepare`; nothing was started.
        DatError: names the stage and, where it is known, the engine that failed.
    """
    import ray

    if os.environ.get("RAY_ADDRESS", "") not in ("", "local") and not ray.is_initialized():
        remedy = "a rehearsal makes its models on this machine, and runs here: unset it"
        raise InputError("RAY_ADDRESS", os.environ["RAY_ADDRESS"], remedy)
    small, doubles, replaced = prepare(recipe, this_machine(), backend)
    for one in replaced:
        stage_line(f"replaced: {one.path} = {one.before!r} -> {one.after!r} ({one.reason})")
    behaviors = check_inputs(small)
    forecast = _forecast(recipe, small)
    run = open_run(root, small, resume=False)
    stage = _Stage("start")
    with _named(stage), session(small, run):
        write_file(run.behaviors, behaviors)
        for number, name in enumerate([*STAGES, "export"], start=1):
            stage.name = name
            what, work = STAGES.get(name, ("the merged model and its adapter", _export))
            stage_line(f"[{number}/{len(STAGES) + 1}] {name}: {what}")
            measured(name, work, small, run)
    return Rehearsal(small, run, doubles, replaced, forecast)


def _forecast(recipe: Recipe, small: Recipe) -> str:
    """As `dat doctor` has it, of all behaviors and of the retain rows that are here."""
    retain = small.training.retain
    return rows_forecast(small, load_behaviors(recipe.behaviors).table, [] if retain is None else load_retain(retain))


@dataclass
class _Stage:
    """The stage that runs."""

    name: str


@contextmanager
def _named(stage: _Stage) -> Any:
    """Raises what ends a stage as a DatError with the stage's name, and the engine's where the message has it."""
    try:
        yield
    except DatError as error:
        engine = _ROLE.search(str(error))
        where = f"stage {stage.name}" + (f", {engine.group()}" if engine else "")
        raise DatError(f"{where}: {error}") from error


def _export(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    from dat_ray.models.loading import load_causal_lm, load_tokenizer

    with tempfile.TemporaryDirectory(prefix="dat-rehearsal-") as scratch:
        folder = str(export_run(run.root, str(Path(scratch) / "export")))
        load_tokenizer(folder)
        parameters = load_causal_lm(folder, "float32").num_parameters()
    return {"parameters": parameters}
