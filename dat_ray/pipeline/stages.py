"""All stages of a run in order. Each is skipped when its output is complete, continued when it is not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from dat_ray import __version__
from dat_ray.config.models import JudgeConfig
from dat_ray.config.schema import Recipe
from dat_ray.data.behaviors import load_behaviors
from dat_ray.data.hold import hold
from dat_ray.data.language import english_rules_read
from dat_ray.data.links import refuse_links
from dat_ray.data.retain import read_retain
from dat_ray.data.rundir import FIRST_ROUND, RunDir, read_record
from dat_ray.data.shards import exists, has_manifest, join, write_file
from dat_ray.diagnosis import keep_traceback
from dat_ray.engines.checks import check_engines
from dat_ray.engines.memory_check import check_memory
from dat_ray.engines.pinning import pinned
from dat_ray.errors import DatError
from dat_ray.evaluation.lm_eval_tasks import check_tasks
from dat_ray.evaluation.registry import check_attack_files, check_attacked_goals, check_attacks
from dat_ray.generation.goals import rewrite_rows
from dat_ray.models.architectures import check_attacked_layers, check_trainable
from dat_ray.models.served import find_source, tokenizer_folder
from dat_ray.pipeline.measure import StageCost, record_stage
from dat_ray.pipeline.rounds import adapter_before, steps
from dat_ray.progress import clock, stage_line
from dat_ray.raysession import start_ray
from dat_ray.runlog import RunLog

# Columns of a table that goes to a file.
LOG_WIDTH = 130
# Of a run's own evaluation.
DEFAULT_SUITE = "default"


def check_inputs(recipe: Recipe, *, trains: bool = True) -> pa.Table:
    """Reads every input of a recipe, so that a bad one is named before a run directory is made.

    Args:
        recipe: a run's.
        trains: whether the target is to be trained at some time, and not only asked.

    Returns:
        BEHAVIORS, training and held-out rows that nearly agree already sorted out.

    Raises:
        InputError: an attack or a file of it, behaviors, retain rows, rewrites or a model that cannot be had, or a target that
            cannot be trained.
    """
    check_attacks(recipe)
    check_attack_files(recipe)
    check_tasks(recipe.evaluation.utility)
    behaviors = load_behaviors(recipe.behaviors)
    if behaviors.dropped:
        stage_line(f"behaviors: {len(behaviors.dropped)} training behaviors are near-duplicates of held-out ones: dropped")
    if behaviors.blank_targets:
        stage_line(f"behaviors: {behaviors.blank_targets} blank targets left out")
    check_attacked_goals(recipe, behaviors.table)
    if recipe.training.retain is not None:
        odd = read_retain(recipe.training.retain).odd
        if odd:
            reasons = "; ".join(f"{count}: each {reason}" for reason, count in odd.items())
            stage_line(f"retain: {sum(odd.values())} rows left out; {reasons}")
    if recipe.selection.rewrites is not None:
        rewrite_rows(behaviors.table, recipe.selection.rewrites)
    check_models(recipe, trains=trains)
    return behaviors.table


def check_models(recipe: Recipe, *, trains: bool = True) -> None:
    """Looks at every model of a recipe, except servers; of what must be downloaded first, at all but the weights.

    Embedded models are built, published samplers converted and adapters that lie here merged, once, and not by the actors that
    need them.

    Args:
        recipe: a run's.
        trains: whether the target is to be trained at some time, and not only asked.

    Raises:
        InputError: a model that cannot be had, weights that loaders would choose differently, a target that cannot be trained
            or take the adapter of `training.lora`, that lacks a layer of `training.attack.layers`, or whose chat template cannot
            be used, a sampler that its backend does not know, a judge's prompt that cannot be read, weights beyond this
            machine's memory, or a cache that cannot be written.
    """
    # First: of weights that cannot be trained it doesn't matter whether they are whole.
    if trains:
        check_target(recipe)
    check_memory(recipe, list(check_engines(recipe)))


def check_target(recipe: Recipe) -> None:
    """Checks the target before anything is asked of it.

    Raises:
        InputError: it cannot be trained, take the adapter or be attacked in the layers that are named, or its chat template
            cannot be used or does not go with `training`.
    """
    # Imported late: the driver of a run that only samples stays light.
    from dat_ray.engines.target_text import TargetText
    from dat_ray.models.adapters import check_lora_targets
    from dat_ray.models.chat import ChatFormat
    from dat_ray.models.loading import load_tokenizer
    from dat_ray.training.training_rows import check_template

    config = recipe.target
    source = find_source(config.model, "target.model", config.revision, weights=False)
    whole = str((source.base or source).folder)
    check_trainable(whole, "target.model")
    check_attacked_layers(whole, "target.model", recipe.training.attack.layers)
    folder = tokenizer_folder(config.model, "target.model", config.revision)
    TargetText(config, folder)
    # As the training reads it, whatever template the target is asked with.
    check_template(ChatFormat(load_tokenizer(folder, "target.model"), config), recipe.training)
    # Of a hub model the configuration alone: its weights may not be here yet.
    local = (source.base or source).commit is None
    check_lora_targets(whole, recipe.training.lora, weights=local)


def run_stages(recipe: Recipe, run: RunDir, stages: Sequence[str], behaviors: pa.Table | None = None) -> None:
    """Runs the named stages inside one Ray session.

    Args:
        recipe: the run's recipe.
        run: its directory, opened by `open_run`.
        stages: names of `STAGES`, in order.
        behaviors: of `check_inputs`, for a run that begins.

    Raises:
        DatError: a stage cannot go on; an exception that nobody foresaw is written to `logs/failure.txt` and
            raised as one line that names the file.
    """
    stage_line(f"run {run.root}: recipe {recipe.name}, fingerprint {run.fingerprint_of(recipe)}, seed {recipe.seed}")
    with session(recipe, run):
        if behaviors is not None and not exists(run.behaviors):
            write_file(run.behaviors, behaviors)
        ahead = steps(recipe, run, stages)
        for number, step in enumerate(ahead, start=1):
            what, work = STAGES[step.stage]
            stage_line(f"[{number}/{len(ahead)}] {step.label}: {what}")
            measured(step.stage, partial(work, step.round_index), recipe, run)


@contextmanager
def session(recipe: Recipe, run: RunDir) -> Iterator[None]:
    """The run's lock and log, and a Ray session; an exception that nobody foresaw is kept in a file and raised as one line.

    Raises:
        InputError: a link leads out of the directory.
        DatError: as it was raised inside, or for any other exception with the name of `logs/failure.txt`.
    """
    refuse_links(run.root)
    kept = _tracebacks_kept(join(run.logs, "failure.txt"), "--resume continues")
    with kept, hold(run.root), RunLog(run), start_ray(recipe.cluster):
        yield


@contextmanager
def _tracebacks_kept(path: str, remedy: str) -> Iterator[None]:
    """Raises an exception that nobody foresaw as a DatError of one line, with the traceback in a file."""
    try:
        yield
    except (DatError, KeyboardInterrupt):
        raise
    except Exception as error:
        details = keep_traceback(path, error)
        reason = (str(error).strip().splitlines() or [""])[-1][:300]
        raise DatError(f"{type(error).__name__}: {reason}; {details}; {remedy}") from error


def report_elsewhere(recipe: Recipe, run: RunDir, out: str) -> None:
    """Writes the report of a run that may only be read: no lock, no log, no Ray.

    Raises:
        DatError: the run's files cannot be understood; names a file in `out` with the traceback.
    """
    from dat_ray.reporting.stage import report

    version = read_record(run).version
    with _tracebacks_kept(join(out, "failure.txt"), f"the run was begun by dat_ray {version}, this is {__version__}"):
        stage_line(f"report: {report(recipe, run, out)}")


def measured(name: str, stage: Callable[[Recipe, RunDir], dict[str, Any]], recipe: Recipe, run: RunDir) -> None:
    """Runs a stage, records what it cost in `logs/stages.jsonl`, and says what came out."""
    with StageCost() as cost:
        facts = stage(recipe, run)
    shown = ", ".join(text for key, value in facts.items() if key not in ("skipped", "detail") and (text := _told(key, value)))
    if facts.get("skipped"):
        stage_line(f"      {name} was complete: {shown}")
        return
    record_stage(run, name, cost, **facts)
    stage_line(f"      {shown}; {clock(cost.seconds)}, peak {cost.peak_bytes / 2**30:.1f} GiB")


def _told(key: str, value: Any) -> str:
    """A fact as a person reads it; counts by kind without those that are 0, and nothing where all are."""
    if not isinstance(value, dict):
        return f"{key} {value}"
    counts = {name: count for name, count in value.items() if count}
    return f"{key} {sum(counts.values())} ({', '.join(f'{count} {name}' for name, count in counts.items())})" if counts else ""


def sections_read(stages: Sequence[str], recipe: Recipe, run: RunDir) -> set[str]:
    """Sections and fields of a recipe whose files, addresses and trackers the named stages use on this run directory."""
    # Imported late: the driver of a run that only samples stays light.
    from dat_ray.training.retain_set import retain_folder

    found = {section for stage in stages for section in _READ[stage]}
    # Once the retain set is made, only the check at the beginning of a run looks at its source.
    if "generate" not in stages and has_manifest(retain_folder(run, FIRST_ROUND)):
        found.discard("training.retain")
    if "train" not in stages and "generate" not in stages and not recipe.evaluation.kl_rows:
        found.discard("training.retain")
    return found


def _generate(round_index: int, recipe: Recipe, run: RunDir) -> dict[str, Any]:
    from dat_ray.evaluation.drawn_prompts import write_diagnostics
    from dat_ray.generation.select import needs_candidates
    from dat_ray.generation.stage import generate

    if not needs_candidates(recipe):
        return {"rows": 0, "skipped": True}
    done = generate(recipe, run, adapter=adapter_before(run, round_index), round_index=round_index)
    write_diagnostics(recipe, run, round_index)
    return {"rows": done.rows, "errors": done.errors, "model_calls": done.nfe, "skipped": done.skipped}


def _select(round_index: int, recipe: Recipe, run: RunDir) -> dict[str, Any]:
    from dat_ray.evaluation.prompt_meaning import measure_meaning
    from dat_ray.generation.select import select, selection_lines

    done = select(run, recipe, round_index)
    for line in (*selection_lines(recipe.selection, done), *measure_meaning(recipe, run, round_index)):
        stage_line(f"      select: {line}")
    return {
        "rows": done.kept,
        "behaviors": done.behaviors,
        "without": len(done.without),
        "dropped": done.dropped,
        "skipped": done.skipped,
    }


def retain(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """The retain set with the base model's answers, which the training makes first where it is not there."""
    from dat_ray.pipeline.retain_answers import base_answers
    from dat_ray.training.retain_set import prepare_retain

    recipe = pinned(recipe, run.root, "target")
    complete = partial(base_answers, recipe, run)
    found = prepare_retain(recipe, run, complete, partial(_fit_to_retain, recipe))
    if found.dropped:
        stage_line(f"      retain: {found.dropped} rows dropped, the base model refuses them or says nothing")
    if found.inpainted < found.wanted:
        stage_line(
            f"      retain: {found.inpainted} in-painted rows, not the {found.wanted} of "
            "training.retain.inpainted_share: raise generation.harmless_samples_per_target"
        )
    if found.unread:
        stage_line(
            f"      retain: {found.unread} responses are in a script that the rules of refusal cannot read: kept unchecked"
        )
    return {"rows": found.rows, "skipped": found.skipped}


def _train(round_index: int, recipe: Recipe, run: RunDir) -> dict[str, Any]:
    from dat_ray.training.driver import train

    # `dat generate` alone asks for no more than a target that answers; the answers to the retain set come before the training.
    check_target(recipe)
    recipe = pinned(recipe, run.root, "target")
    retain(recipe, run)
    done = train(recipe, run, round_index)
    return {
        "rows": done.rows,
        "retain_rows": done.retain_rows,
        "left_out": done.left_out,
        "cut": done.cut,
        "updates": done.updates,
        "skipped": done.skipped,
    }


def _fit_to_retain(recipe: Recipe, prompt: str, response: str) -> bool:
    """Whether the judge sees an answer, not a refusal: retaining refusals of harmless prompts would teach them."""
    from dat_ray.engines.factory import build_judge

    # By rules, whatever the recipe's judge: one that looks for harm finds none in a good answer to a harmless prompt.
    verdict = build_judge(JudgeConfig()).judge([prompt], [prompt], [response])[0].verdict
    # A whole set in another script would be lost otherwise; the stage says how many rows went unchecked.
    return verdict == "harmful" or (verdict == "unparsed" and not english_rules_read(response))


def _evaluate(_: int, recipe: Recipe, run: RunDir) -> dict[str, Any]:
    from dat_ray.evaluation.compared import own_models
    from dat_ray.evaluation.stage import evaluate
    from dat_ray.pipeline.fresh import draw_own, gap_is_open, own_pairs

    models, drawn = own_models(recipe, run), None
    if gap_is_open(recipe, run, DEFAULT_SUITE):
        measured("fresh", draw_own, recipe, run)
        drawn = own_pairs(recipe, run, models)
    done = evaluate(recipe, run, DEFAULT_SUITE, models=models, drawn=drawn)
    return {"rows": done.rows, "errors": done.errors, "model_calls": done.model_calls, "skipped": done.skipped}


def _report(_: int, recipe: Recipe, run: RunDir) -> dict[str, Any]:
    from dat_ray.reporting.closing import closing
    from dat_ray.reporting.stage import report

    where = report(recipe, run)
    for part in closing(run):
        # As wide as the table is: it is read again in logs.
        Console(stderr=True, width=None if sys.stderr.isatty() else LOG_WIDTH).print(part)
    local = "://" not in where
    return {"report": Path(where).absolute().as_uri() if local else where}


# What `sections_read` names: `check_inputs` comes before the first stage and reads the files of later ones too.
_READ: dict[str, tuple[str, ...]] = {
    "generate": (
        *("behaviors", "selection.rewrites", "training.retain", "judge"),
        *("evaluation.attacks", "evaluation.prompts", "evaluation.templates_path"),
    ),
    "select": ("selection",),
    "train": ("training.retain", "tracking"),
    "evaluate": ("judge", "evaluation", "training.retain"),
    "report": (),
}

# What a stage does, and the function that does it in a round; the last two are of no round.
STAGES: dict[str, tuple[str, Callable[[int, Recipe, RunDir], dict[str, Any]]]] = {
    "generate": ("sample prompts, answer, judge", _generate),
    "select": ("keep the most effective prompts of each behavior", _select),
    "train": ("adversarial fine-tuning", _train),
    "evaluate": ("attack the base and the fine-tuned model", _evaluate),
    "report": ("one HTML file", _report),
}
