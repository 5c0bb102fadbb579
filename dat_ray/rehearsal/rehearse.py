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
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dat_ray.config.judge_names import library_judge, needs_reader
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
from dat_ray.pipeline.rounds import steps
from dat_ray.pipeline.stages import STAGES, check_inputs, measured, session
from dat_ray.progress import stage_line
from dat_ray.rehearsal.doubles import Double, make_doubles
from dat_ray.rehearsal.hub_rows import hub_changes
from dat_ray.rehearsal.overlay import Machine, Replaced, rehearsed, replace_values, with_models

_ROLE = re.compile(r"\b(held-out sampler|sampler|target|judge|attacker|encoder|trainer|vLLM|lm-eval)\b")


@dataclass(frozen=True)
class RehearsalPlan:
    """What a recipe is rehearsed with.

    Attributes:
        original: the recipe of the real run.
        recipe: with everything that is replaced.
        doubles: the models.
        replaced: each value that is not the recipe's own.
    """

    original: Recipe
    recipe: Recipe
    doubles: Sequence[Double]
    replaced: Sequence[Replaced]


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal came to.

    Attributes:
        prepared: what it was made with.
        run: its directory.
        forecast: what will be cut and left out of all training rows of the real run.
    """

    prepared: RehearsalPlan
    run: RunDir
    forecast: str


def this_machine() -> Machine:
    """What this machine has: GPUs, vLLM, and number formats."""
    import torch

    from dat_ray.models.fp8 import lacks_products

    gpus = torch.cuda.device_count()
    dtypes = {"float32", "float16"} | ({"bfloat16"} if not gpus or torch.cuda.is_bf16_supported() else set())
    eight_bits = bool(gpus) and not lacks_products(torch.device("cuda"))
    return Machine(gpus, find_spec("vllm") is not None, frozenset(dtypes), eight_bits)


def prepare(recipe: Recipe, machine: Machine, backend: str | None = None) -> RehearsalPlan:
    """Looks at everything that a recipe names, and makes what it is rehearsed with.

    Args:
        recipe: of the real run.
        machine: at hand.
        backend: of every engine but servers; None for the recipe's own.

    Raises:
        InputError: what the real run would be refused for, named by its field; or a judge whose model cannot be made small.
    """
    if backend == "vllm" and not machine.vllm:
        raise InputError("--backend", backend, "is not installed here: install it, or rehearse with --backend torch")
    check_attacks(recipe)
    check_tasks(recipe.evaluation.utility)
    _refuse_own_models(recipe)
    small, sizes = rehearsed(recipe, machine, backend)
    prompts_of(small, *JUDGES)
    doubles = list(make_doubles(small))
    small, models = with_models(small, {double.section: double.folder for double in doubles if double.folder is not None})
    small, rows = replace_values(small, hub_changes(small))
    return RehearsalPlan(recipe, small, doubles, [*sizes, *models, *rows])


def _refuse_own_models(recipe: Recipe) -> None:
    evaluation = recipe.evaluation
    judges = {"judge": recipe.judge, "evaluation.second_judge": evaluation.second_judge,
              "evaluation.refusal_judge": evaluation.refusal_judge}  # fmt: skip
    for section, judge in judges.items():
        if judge is not None and library_judge(judge.name) and not needs_reader(judge.name):
            remedy = "loads a model of its own, which cannot be made small: rehearse with another judge by --set"
            raise InputError(f"{section}.name", judge.name, remedy)


def check_place(root: str) -> None:
    """Raises InputError where a rehearsal cannot begin in a folder, or on this machine."""
    import ray

    if os.environ.get("RAY_ADDRESS", "") not in ("", "local") and not ray.is_initialized():
        remedy = "a rehearsal makes its models on this machine, and runs here: unset it"
        raise InputError("RAY_ADDRESS", os.environ["RAY_ADDRESS"], remedy)
    if os.path.isdir(root) and os.listdir(root):
        raise InputError("--run-dir", root, "is not empty, and a rehearsal begins anew: remove it, or give another folder")


def rehearse(prepared: RehearsalPlan, root: str) -> Rehearsal:
    """Runs every stage once, and the export.

    Args:
        prepared: of `prepare`.
        root: a folder that is new or empty.

    Raises:
        InputError: an input that cannot be used; nothing was started.
        DatError: names the stage and, where it is known, the engine that failed.
    """
    recipe = prepared.recipe
    behaviors = check_inputs(recipe)
    forecast = _forecast(prepared)
    run = open_run(root, recipe, resume=False)
    stage = _Stage("start")
    with _named(stage), session(recipe, run):
        write_file(run.behaviors, behaviors)
        ahead = steps(recipe, run, tuple(STAGES))
        for number, step in enumerate(ahead, start=1):
            stage.name = step.stage
            what, work = STAGES[step.stage]
            stage_line(f"[{number}/{len(ahead) + 1}] {step.label}: {what}")
            measured(step.stage, partial(work, step.round_index), recipe, run)
        stage.name = "export"
        stage_line(f"[{len(ahead) + 1}/{len(ahead) + 1}] export: the merged model and its adapter")
        measured("export", _export, recipe, run)
    return Rehearsal(prepared, run, forecast)


def _forecast(prepared: RehearsalPlan) -> str:
    """As `dat doctor` has it, of all behaviors and of the retain rows that are here."""
    retain = prepared.recipe.training.retain
    rows = [] if retain is None else load_retain(retain)
    return rows_forecast(prepared.recipe, load_behaviors(prepared.original.behaviors).table, rows)


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
