"""`dat evaluate --models` and `--replay`: evaluations beside a run's own, with a table in every form people ask for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml
from rich.console import Console

from dat_ray.config.loading import load_settings
from dat_ray.config.schema import Recipe
from dat_ray.data.behaviors import load_behaviors
from dat_ray.data.links import refuse_links
from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import exists, read_file, write_file
from dat_ray.data.trust import require_trust
from dat_ray.engines.checks import check_engine
from dat_ray.engines.factory import check_target_adapter
from dat_ray.engines.pinning import JUDGES
from dat_ray.errors import InputError
from dat_ray.evaluation.compared import OPTION, Model, named_models
from dat_ray.evaluation.lm_eval_tasks import check_tasks
from dat_ray.evaluation.registry import FIELD as ATTACKS
from dat_ray.evaluation.registry import check_attack_files, check_attacked_goals, check_attacks, chosen_attacks
from dat_ray.evaluation.rescore import OPTION as REPLAY
from dat_ray.evaluation.rescore import read_record, score_again
from dat_ray.evaluation.results import Metrics
from dat_ray.models.architectures import check_trainable
from dat_ray.models.served import find_source
from dat_ray.pipeline.stages import check_inputs, measured, session
from dat_ray.progress import stage_line
from dat_ray.reporting.stage import report
from dat_ray.reporting.tables import comparison, write_tables
from dat_ray.reporting.terminal import for_terminal

COMPARISON = "comparison"
# What scoring again uses of a stored recipe: the models that read what is scored, and the classes of attacks, which say how
# their attempts are counted.
REPLAY_READS = (*JUDGES, ATTACKS)
# What may differ between an evaluation and its replay: the judges, how sure the intervals are, where it runs.
REPLAY_FIELDS = ("judge.", "evaluation.second_judge", "evaluation.confidence", "evaluation.bootstrap", "cluster.", "timeouts.")


def compare(recipe: Recipe, run: RunDir, models: str, suite: str | None) -> None:
    """Evaluates the named models on the run's held-out behaviors, prints the table and writes the report.

    Raises:
        InputError: a model that cannot be found, or that an attack with gradients would get wrong; a suite of other models.
        DatError: as `evaluate`.
    """
    from dat_ray.evaluation.stage import evaluate

    found, name = check_compared(recipe, run, models), suite or COMPARISON
    stage_line(f"compare: {', '.join(model.name for model in found)}; differences are from {found[0].name}")
    if recipe.evaluation.gap is not None:
        stage_line(
            "compare: evaluation.gap is of a run's own training prompts: not measured here, but by dat evaluate and dat study"
        )
    if not exists(run.behaviors):
        write_file(run.behaviors, load_behaviors(recipe.behaviors).table)

    def stage(recipe: Recipe, run: RunDir) -> dict[str, Any]:
        done = evaluate(recipe, run, name, models=found)
        _show(done.metrics, run.evaluation(name))
        return {"rows": done.rows, "errors": done.errors, "model_calls": done.model_calls, "skipped": done.skipped}

    with session(recipe, run):
        measured("compare", stage, recipe, run)
        stage_line(f"report: {report(recipe, run)}")


def check_compared(recipe: Recipe, run: RunDir, models: str) -> list[Model]:
    """Looks at what a comparison will need, before the first model is asked; nothing is written.

    Args:
        recipe: of the run.
        run: its directory, which need not be there yet.
        models: as for `named_models`.

    Raises:
        InputError: a model that cannot be found, or that an attack with gradients would get wrong, or an input of the recipe.
    """
    found = named_models(recipe, models)
    check_attacks(recipe)
    check_attack_files(recipe)
    check_tasks(recipe.evaluation.utility)
    if exists(run.behaviors):
        check_attacked_goals(recipe, read_file(run.behaviors))
    else:
        check_inputs(recipe, trains=False)
    kinds = chosen_attacks(recipe.evaluation).values()
    searched = any(kind.gradients for kind in kinds)
    for model in (one for one in found if one.answers is None):
        config = model.config(recipe.target)
        if model.adapter is not None:
            # What does not fit would be found out after the models before it.
            check_target_adapter(config, model.adapter, OPTION)
        # Only an adapter has drifted from something.
        if searched or (recipe.evaluation.kl_rows and model.adapter is not None):
            source = find_source(config.model, OPTION, config.revision, weights=False)
            check_trainable(str((source.base or source).folder), OPTION)
        check_engine("target", config, OPTION)
    return found


def rescore(
    where: str,
    judge: str | None,
    settings: Sequence[str],
    suite: str | None,
    *,
    own: Recipe | None = None,
    trusted: bool = False,
) -> None:
    """Scores a stored evaluation again with another judge, prints the table, and renews the report of its run.

    Args:
        where: an evaluation folder or a run directory.
        judge: name of the judge; None where `settings` say it.
        settings: `judge.field=value` and the like.
        suite: name of the new folder; default: the old name and the judge's.
        own: a recipe that the person names: what it says of judges in the same words as the stored one is trusted.
        trusted: whether the stored recipe's addresses, variables and files are.

    Raises:
        InputError: nothing to replay, no other judge, or a setting that would need the model again.
    """
    root, record = read_record(where)
    for override in settings:
        if not override.startswith(REPLAY_FIELDS):
            allowed = ", ".join(field.rstrip(".") for field in REPLAY_FIELDS)
            raise InputError("--set", override, f"a replay asks no model again: only {allowed} can change")
    tree = record["recipe"]
    if judge is not None:
        # What the judge before needed, a reader for one, says nothing about this one.
        tree["judge"] = {"name": judge}
    recipe = load_settings(Recipe, yaml.safe_dump(tree), root, settings)
    require_trust(recipe, REPLAY_READS, root, option=REPLAY, trusted=trusted, settings=settings, own=own)
    run = RunDir(root.rsplit("/", 2)[0])
    in_a_run = exists(run.record)
    if in_a_run:
        refuse_links(run.root, REPLAY)
    name = suite or f"{record['suite']}-{re.sub(r'[^A-Za-z0-9._]+', '-', recipe.judge.name)}"
    done = score_again(root, record, recipe, name)
    stage_line(f"replay: {done.rows} completions of {root}, judged by {recipe.judge.name}; no model was asked; {done.root}")
    _show(done.metrics, done.root)
    if in_a_run:
        stage_line(f"report: {report(recipe, run)}")


def _show(metrics: Metrics, root: str) -> None:
    table = comparison(metrics)
    for part in for_terminal(table):
        Console(stderr=False).print(part)
    stage_line(f"tables: {', '.join(write_tables(table, root))}")
