"""`dat study`: arms by seeds, each a run of its own, and all of them under the same suites.

    STUDY/study.json, index.html, tables/SUITE/table.md, table.csv, table.tex
    STUDY/shared/KIND-HASH/      candidates, the base model's answers to the retain set, and fresh prompts for the distribution
                                 gap, of all runs whose inputs to them are the same
    STUDY/arms/ARM/seed-N/       one run directory each, up to its adapter
    STUDY/suites/SUITE/HASH/     a run directory with one evaluation of the base model and of all runs; HASH is of their names
    STUDY/suites/fronts/HASH/    the same of adapters along the trainings, where the study has `fronts`
    STUDY/records/HASH/          what page and tables are made from, without texts

What a suite draws and what the base model answers is thereby made once. A run that fails is told and does not stop the others;
the suites begin when all have finished. The same command with `--resume` goes on. A part of a study, some of its runs, ends with
its record; page and tables come from the records of all parts, wherever they were made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console

from dat_ray.config.loading import fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.config.study import BASE, CANDIDATES, Study, StudyRun, candidates_mark, retain_mark
from dat_ray.data.behaviors import load_behaviors
from dat_ray.data.ids import row_id
from dat_ray.data.links import refuse_links
from dat_ray.data.rundir import RunDir, open_run, read_record
from dat_ray.data.shards import exists, join, write_bytes, write_file
from dat_ray.errors import DatError, InputError
from dat_ray.evaluation.compared import Model, adapted_model, kept_model
from dat_ray.evaluation.lm_eval_tasks import check_tasks
from dat_ray.evaluation.registry import check_attack_files, check_attacked_goals, check_attacks, check_primary
from dat_ray.generation.goals import rewrite_rows
from dat_ray.generation.select import needs_candidates
from dat_ray.pipeline.fresh import FRESH, draw_fresh, fresh_sets, gap_is_open, study_pairs
from dat_ray.pipeline.front_suite import adapters
from dat_ray.pipeline.jobs import Job, JobBoard, RunJob
from dat_ray.pipeline.shared import check_empty, take_over, take_over_models
from dat_ray.pipeline.stages import check_inputs, check_models, measured, retain, run_stages, session
from dat_ray.pipeline.study_records import RECORDS, read_parts, write_part
from dat_ray.progress import Progress, stage_line
from dat_ray.raysession import start_ray
from dat_ray.reporting.collect import CollectedSuite, read_suite
from dat_ray.reporting.study import study_text, write_study
from dat_ray.reporting.study_fronts import study_fronts

OPTION = "--study-dir"
RECORD = "study.json"
# Of a run; the first round's candidates it takes over.
STAGES = ("generate", "select", "train")
COMPARE = "compare"


@dataclass(frozen=True)
class Works:
    """What the jobs of a study do; tests put smaller works in their place.

    Attributes:
        share: makes what runs share.
        train: makes a run's training set and adapter.
        ask: evaluates models; called with the folders of their runs, or of adapters, by the models' names first.
    """

    share: RunJob
    train: RunJob
    ask: Any


def study(plan: Study, root: str, *, resume: bool, works: Works | None = None) -> str:
    """Trains every arm under every seed, evaluates them together, and writes the page and the tables.

    Args:
        plan: of `read_study`.
        root: the study's folder, local or a URI.
        resume: continue what is there.
        works: of the jobs; default: the stages of a run.

    Returns:
        Path of the page; of a part of a study that of its record.

    Raises:
        InputError: the folder holds something and `resume` is off, a link leads out of it, or a recipe's inputs cannot be had.
        DatError: a run or a suite failed; what is finished is kept.
    """
    works = works or Works(make_shared, train_arm, ask_models)
    refuse_links(root, OPTION)
    if not resume:
        check_empty(root, OPTION)
    _check_inputs(plan)
    write_bytes(join(root, RECORD), json.dumps(_record(plan), indent=1).encode())
    shared = {job.root: job for run in reversed(plan.runs) for job in _shared_jobs(run, root)}
    fresh = _fresh_jobs(plan, root)
    shared |= {job.root: job for job in fresh}
    runs = [_run_job(run, root) for run in plan.runs]
    folders = {run.model: job.root for run, job in zip(plan.runs, runs, strict=True)}
    sources = (*folders.values(), *(job.root for job in fresh))
    suites = [_suite_job(name, recipe, root, folders, sources) for name, recipe in plan.suites.items()]
    whole = "" if plan.is_whole else f", of which {len(runs)} runs are made here"
    stage_line(
        f"study {root}: {len(plan.config.arms)} arms x {len(plan.config.seeds)} seeds{whole}, {len(shared)} shared sets, "
        f"{len(suites) + len(plan.front_suites)} suites, {plan.config.parallel} at a time"
    )
    total = sum(len(job.stages) for job in [*shared.values(), *runs, *suites]) + len(plan.front_suites)
    first = next((run.recipe for run in plan.runs if run.arm == plan.reference), plan.runs[0].recipe)
    with start_ray(first.cluster), Progress("study", total, "stages") as progress:
        board = JobBoard("study", plan.config.parallel, progress)
        failed = board.run(list(shared.values()), works.share)
        lost = {job.root: failed[source] for job in runs for source in job.sources if source in failed}
        failed |= lost | board.run([job for job in runs if job.root not in lost], works.train)
        _raise_failed([*runs, *fresh], failed, "runs")
        along = adapters(plan, folders)
        fronts = [_suite_job(name, recipe, root, along, sources) for name, recipe in plan.front_suites.items()]
        _raise_failed(suites, board.run(suites, partial(works.ask, folders)), "suites")
        _raise_failed(fronts, board.run(fronts, partial(works.ask, along)), "suites of adapters along the trainings")
    evaluations = {job.label: RunDir(job.root).evaluation(job.label) for job in (*suites, *fronts)}
    record = write_part(plan, evaluations, join(root, RECORDS, _models(folders)))
    stage_line(f"study: record of {len(runs)} runs: {record}")
    if not plan.is_whole:
        stage_line(f"study: page and tables come from all parts: dat study ... --merge {record} ...")
        return record
    return _shown(plan, {name: read_suite(folder) for name, folder in evaluations.items()}, root)


def merge_study(plan: Study, places: Sequence[str], root: str) -> str:
    """Writes the page and the tables of a study whose parts were made apart; returns the page's path.

    Args:
        plan: of `read_study`, or a part of it.
        places: folders of the parts' records, or folders that hold them.
        root: the folder for the page.

    Raises:
        InputError: as `read_parts`, or the runs make no table, or the folder for the page is one of a study.
    """
    refuse_links(root, OPTION)
    if exists(join(root, RECORD)):
        raise InputError(OPTION, root, "is the folder of a study's runs: give the page one of its own")
    plan = plan.alone()
    check_primary(plan)
    merged = read_parts(plan, places)
    return _shown(plan, merged.suites, root, merged.notes)


def _shown(plan: Study, found: Mapping[str, CollectedSuite], root: str, notes: Sequence[str] = ()) -> str:
    suites = {name: found[name] for name in plan.suites}
    compared = [study_fronts(plan, found[name]) for name in plan.front_suites]
    page = write_study(plan, suites, root, compared, notes)
    for part in study_text(plan, suites, compared):
        Console().print(part)
    for note in notes:
        stage_line(f"study: {note}")
    stage_line(f"study: {page}")
    return page


def _check_inputs(plan: Study) -> None:
    """Looks at the inputs of every recipe once, whatever its seed; what is said of the same rows is said once."""
    check_primary(plan)
    seen: set[str] = set()
    for recipe in [*(run.recipe for run in plan.runs), *plan.suites.values(), *plan.front_suites.values()]:
        mark = fingerprint(recipe.model_copy(update={"seed": 0}))
        rows = f"rows {fingerprint(recipe, ('behaviors',))} {retain_mark(recipe)}"
        if mark not in seen:
            check = check_inputs if rows not in seen else check_the_rest
            check(recipe)
        seen |= {mark, rows}


def check_the_rest(recipe: Recipe) -> None:
    """What `check_inputs` looks at besides the rows themselves."""
    check_attacks(recipe)
    check_attack_files(recipe)
    check_tasks(recipe.evaluation.utility)
    behaviors = load_behaviors(recipe.behaviors).table
    check_attacked_goals(recipe, behaviors)
    if recipe.selection.rewrites is not None:
        rewrite_rows(behaviors, recipe.selection.rewrites)
    check_models(recipe)


def _record(plan: Study) -> dict[str, Any]:
    return {
        "study": plan.config.model_dump(mode="json"),
        "runs": plan.run_marks,
        "suites": plan.suite_marks,
    }


def _shared_jobs(run: StudyRun, root: str) -> list[Job]:
    """What must be there before a run begins, so that it takes it over."""
    found = []
    if needs_candidates(run.recipe):
        name = f"candidates-{candidates_mark(run.recipe)}"
        found.append(Job(f"candidates, seed {run.seed}", run.recipe, join(root, "shared", name), (), ("generate",)))
    mark = retain_mark(run.recipe)
    if mark is not None:
        found.append(Job("retain answers", run.recipe, join(root, "shared", f"retain-{mark}"), (), ("retain",)))
    return found


def _run_job(run: StudyRun, root: str) -> Job:
    shared = tuple(job.root for job in _shared_jobs(run, root))
    return Job(f"{run.arm}, seed {run.seed}", run.recipe, join(root, "arms", run.arm, f"seed-{run.seed}"), shared, STAGES[1:])


def _fresh_jobs(plan: Study, root: str) -> list[Job]:
    sets = fresh_sets(plan)
    return [Job("fresh prompts", recipe, join(root, "shared", name), (), (FRESH,)) for name, recipe in sets.items()]


def _suite_job(name: str, recipe: Recipe, root: str, models: Mapping[str, str], sources: tuple[str, ...]) -> Job:
    return Job(name, recipe, join(root, "suites", name, _models(models)), sources, (COMPARE,))


def _raise_failed(jobs: list[Job], failed: Mapping[str, str], what: str) -> None:
    told = "; ".join(f"{job.label}: {failed[job.root]}" for job in jobs if job.root in failed)
    if told:
        number = sum(job.root in failed for job in jobs)
        raise DatError(f"{number} of {len(jobs)} {what} failed ({told[:600]}); the others are kept; --resume tries them again")


def make_shared(job: Job) -> None:
    """Prompts with answers and verdicts, for training or fresh ones, or the base model's answers to the retain set."""
    recipe = as_begun(job)
    run = open_run(job.root, recipe, resume=True)
    if job.stages == ("generate",):
        run_stages(recipe, run, job.stages, check_inputs(recipe))
        return
    with session(recipe, run):
        if job.stages == (FRESH,):
            measured(FRESH, _draw_fresh, recipe, run)
        else:
            measured("retain", retain, recipe, run)


def as_begun(job: Job) -> Recipe:
    """The recipe of shared rows: in what makes them the job's, in all else that of the run which they were begun for.

    Another run may come first by now, as an arm that was put before the others.
    """
    run = RunDir(job.root)
    if job.stages == (FRESH,) or not exists(run.record):
        return job.recipe
    record = read_record(run)
    mark, made_of = (candidates_mark, CANDIDATES) if job.stages == ("generate",) else (retain_mark, ("target",))
    if record.unknown or mark(record.recipe) != mark(job.recipe):
        return job.recipe
    # What changes no row may have changed since: the size of a batch that did not fit, a time that was too short.
    free = {"generation": record.recipe.generation.model_copy(update={"max_error_rate": job.recipe.generation.max_error_rate})}
    now = {name: getattr(job.recipe, name) for name in (*made_of, "cluster", "timeouts", "tracking")}
    return record.recipe.model_copy(update=free | now)


def _draw_fresh(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    return draw_fresh(recipe, run.root, load_behaviors(recipe.behaviors).table)


def train_arm(job: Job) -> None:
    """A run's training set and adapter, from what is shared."""
    run = open_run(job.root, job.recipe, resume=True)
    take_over([RunDir(source) for source in job.sources], run, job.recipe)
    run_stages(job.recipe, run, STAGES, None if exists(run.behaviors) else check_inputs(job.recipe))


def ask_models(folders: Mapping[str, str], job: Job) -> None:
    """One evaluation of the base model and of all runs, named as the suite: with other models the prompts are the same."""
    from dat_ray.evaluation.stage import evaluate

    run = open_run(job.root, job.recipe, resume=True)
    models = study_models(job.recipe, folders)
    take_over_models(run, job.recipe, job.label, models)

    def stage(recipe: Recipe, run: RunDir) -> dict[str, Any]:
        drawn = None
        if gap_is_open(recipe, run, job.label):
            drawn = study_pairs(recipe, folders, job.sources)
        done = evaluate(recipe, run, job.label, models=models, drawn=drawn)
        return {"rows": done.rows, "errors": done.errors, "model_calls": done.model_calls, "skipped": done.skipped}

    with session(job.recipe, run):
        if not exists(run.behaviors):
            write_file(run.behaviors, load_behaviors(job.recipe.behaviors).table)
        measured(COMPARE, stage, job.recipe, run)


def study_models(recipe: Recipe, folders: Mapping[str, str]) -> list[Model]:
    """The base model, then those of runs, or of adapters that a run kept, by the names of `StudyRun.model` or `.after`."""
    base = Model(BASE, None, recipe.target.model)
    return [base, *(_model(name, recipe, folder) for name, folder in folders.items())]


def _model(name: str, recipe: Recipe, folder: str) -> Model:
    run = RunDir(folder)
    return adapted_model(name, recipe, run) if exists(run.record) else kept_model(name, folder)


def _models(folders: Mapping[str, str]) -> str:
    """A name of its own for each set of models, so that an arm or a seed can be added."""
    return f"models-{row_id(*folders)[:8]}"
