"""`dat sweep`: every point of a grid is a run of its own, driven by a Ray task; what points share is made once.

    SWEEP/sweep.json, index.html, front.csv
    SWEEP/shared/HASH/     candidates, and the base model's answers, of all points whose inputs to them are the same
    SWEEP/points/NAME/     one run directory each, complete by itself

A point that fails is told and does not stop the others. The same command with `--resume` goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs
import ray
from ray.exceptions import RayError, RayTaskError

from dat_ray.config.loading import fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.config.sweep import EVALUATION, Plan, Point, shared_recipe, stage_fingerprint
from dat_ray.data.links import refuse_links
from dat_ray.data.rundir import FIRST_ROUND, RunDir, open_run
from dat_ray.data.shards import (
    exists,
    has_manifest,
    join,
    open_filesystem,
    read_bytes,
    read_file,
    read_manifest,
    write_bytes,
    write_file,
    write_manifest,
)
from dat_ray.data.stored import stored_lines, well_formed
from dat_ray.errors import DatError, InputError
from dat_ray.evaluation.compared import BASE, Model
from dat_ray.evaluation.drawn_prompts import FILE as DIAGNOSTICS
from dat_ray.evaluation.results import load_metrics
from dat_ray.generation.select import needs_candidates
from dat_ray.models.identity import RECORD as WEIGHTS
from dat_ray.pipeline.stages import STAGES, check_inputs, run_stages
from dat_ray.placement import beside_the_driver
from dat_ray.progress import Progress, stage_line
from dat_ray.raysession import start_ray
from dat_ray.reporting.sweep import SweepRow, write_front

RECORD = "sweep.json"
SUITE = "default"
# Seconds between two looks at what the points have finished.
LOOK_S = 2.0
# A task whose process dies is started again, and its run continued; its node is the driver's own.
RETRIES = 2


@dataclass(frozen=True)
class Job:
    """One Ray task: what is shared, or a point.

    Attributes:
        label: for people.
        recipe: of its run directory.
        root: the run directory.
        sources: run directories whose candidates and base answers are taken over; empty for what is shared.
        stages: how many lines its `logs/stages.jsonl` will have, for the progress bar.
    """

    label: str
    recipe: Recipe
    root: str
    sources: tuple[str, ...]
    stages: int


RunJob = Callable[[Job], None]


def sweep(plan: Plan, root: str, *, resume: bool, share: RunJob | None = None, work: RunJob | None = None) -> str:
    """Runs a grid and draws its front.

    Args:
        plan: of `read_sweep`.
        root: the sweep's folder, local or a URI.
        resume: continue what is there.
        share: makes what points share; default: candidates and the base model's answers.
        work: runs a point; default: all stages.

    Returns:
        Path of the page with the front.

    Raises:
        InputError: the folder holds something and `resume` is off, a link leads out of it, or a recipe's inputs cannot be had.
        DatError: at least one point failed; the others are finished.
    """
    share, work = share or share_stages, work or run_point
    refuse_links(root, "--sweep-dir")
    if not resume and _holds_something(root):
        raise InputError("--sweep-dir", root, "is not empty: choose another directory, or add --resume to continue there")
    for recipe in {stage_fingerprint(p.recipe, (*EVALUATION, "training")): p.recipe for p in plan.points}.values():
        check_inputs(recipe)
    shared = {_shared_name(point.recipe): point.recipe for point in plan.points}
    stage_line(f"sweep {root}: {len(plan.points)} points, {len(shared)} sets of shared stages, {plan.config.parallel} at a time")
    first = [_shared_job(plan, recipe, root, name) for name, recipe in shared.items()]
    points = [_point_job(point, root) for point in plan.points]
    total = sum(job.stages for job in [*first, *points])
    with start_ray(plan.base.cluster), Progress("sweep", total, "stages") as progress:
        failed = _run_all(first, share, plan.config.parallel, progress, 0)
        lost = {job.root: failed[job.sources[0]] for job in points if job.sources[0] in failed}
        ready = [job for job in points if job.root not in lost]
        done = sum(_stages_done(job) for job in first)
        failed |= lost | _run_all(ready, work, plan.config.parallel, progress, done)
    page = _summarize(plan, root, points, failed)
    if any(job.root in failed for job in points):
        told = "; ".join(f"{job.label}: {failed[job.root]}" for job in points if job.root in failed)
        raise DatError(
            f"{sum(job.root in failed for job in points)} of {len(points)} points failed ({told[:600]}); "
            f"the others are in {page}; --resume tries them again"
        )
    stage_line(f"sweep: {page}")
    return page


def _holds_something(root: str) -> bool:
    fs, inner = open_filesystem(root)
    return bool(fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True)))


def _shared_name(recipe: Recipe) -> str:
    candidates = "with" if needs_candidates(recipe.selection) else "without"
    return f"{stage_fingerprint(recipe, EVALUATION)}-{candidates}-candidates"


def _shared_job(plan: Plan, recipe: Recipe, root: str, name: str) -> Job:
    own = shared_recipe(plan, recipe, EVALUATION)
    if needs_candidates(own.selection) != needs_candidates(recipe.selection):
        own = own.model_copy(update={"selection": recipe.selection})
    return Job(f"shared {name[:8]}", own, join(root, "shared", name), (), 2)


def _point_job(point: Point, root: str) -> Job:
    shared = join(root, "shared", _shared_name(point.recipe))
    return Job(point.label, point.recipe, join(root, "points", point.name), (shared,), len(STAGES))


def _run_all(jobs: Sequence[Job], work: RunJob, parallel: int, progress: Progress, done: int) -> dict[str, str]:
    """Runs jobs, at most `parallel` at a time; returns the failed ones' reasons by folder."""
    task: Any = ray.remote(max_retries=RETRIES, **beside_the_driver())(_told)
    waiting, finished = list(jobs), []
    running: dict[Any, Job] = {}
    failed: dict[str, str] = {}
    while waiting or running:
        while waiting and len(running) < parallel:
            job = waiting.pop(0)
            running[task.remote(work, job)] = job
        ready, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_S)
        for ref in ready:
            job = running.pop(ref)
            finished.append(job)
            reason = _outcome(ref)
            if reason is not None:
                failed[job.root] = reason
            stage_line(f"sweep: {job.label}: {'done' if reason is None else 'FAILED: ' + reason}")
        counted = sum(_stages_done(job) for job in [*finished, *running.values()])
        progress.update(done + counted, "; ".join(f"{job.label} at {_stage_now(job)}" for job in running.values()))
    return failed


def _told(work: RunJob, job: Job) -> str | None:
    """Runs a job; a failure is an answer, so that Ray starts again only what died."""
    try:
        work(job)
        return None
    except DatError as error:
        return str(error)


def _outcome(ref: Any) -> str | None:
    try:
        reason: str | None = ray.get(ref)
        return reason
    except (RayTaskError, RayError) as error:
        cause = getattr(error, "cause", None) or error
        return f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[-1][:300]}"


def _stages_done(job: Job) -> int:
    where = join(RunDir(job.root).logs, "stages.jsonl")
    if not exists(where):
        return 0
    return len({str(line.get("stage")) for line in stored_lines(where)} & STAGES.keys())


def _stage_now(job: Job) -> str:
    names, done = list(STAGES), _stages_done(job)
    return names[min(done, len(names) - 1)] if job.sources else ("generate", "evaluate")[min(done, 1)]


def share_stages(job: Job) -> None:
    """Candidates, and every answer of the base model to the held-out questions."""
    from dat_ray.evaluation.stage import evaluate
    from dat_ray.pipeline.stages import measured, session

    run = open_run(job.root, job.recipe, resume=True)
    run_stages(job.recipe, run, ("generate",), check_inputs(job.recipe))

    def base_only(recipe: Recipe, run: RunDir) -> dict[str, Any]:
        done = evaluate(recipe, run, SUITE, models=[Model(BASE, None, recipe.target.model)])
        return {"rows": done.rows, "errors": done.errors, "model_calls": done.model_calls, "skipped": done.skipped}

    with session(job.recipe, run):
        measured("evaluate", base_only, job.recipe, run)


def run_point(job: Job) -> None:
    """All stages of a point, on what was shared with it."""
    run = open_run(job.root, job.recipe, resume=True)
    for source in job.sources:
        take_over(RunDir(source), run, job.recipe)
    run_stages(job.recipe, run, tuple(STAGES))


def take_over(source: RunDir, run: RunDir, recipe: Recipe) -> None:
    """Copies behaviors, candidates and the base model's evaluation shards into a point's run directory.

    The rows are what the point would make itself: their ids hash what determines them, and the point's own stages
    check those ids. A copy, not a link: a run directory stands alone, on any storage.
    """
    if not exists(run.behaviors):
        write_file(run.behaviors, read_file(source.behaviors))
    _take_over_costs(source, run)
    _take_over_weights(source.root, run.root)
    old, new = source.candidates(FIRST_ROUND), run.candidates(FIRST_ROUND)
    if has_manifest(old) and not has_manifest(new):
        files = read_manifest(old).files
        extra = [DIAGNOSTICS] if exists(join(old, DIAGNOSTICS)) else []
        for name in [*(file.path for file in files), *extra]:
            write_bytes(join(new, name), read_bytes(join(old, name)))
        write_manifest(new, list(files), run.fingerprint_of(recipe))
    answers, own = source.evaluation(SUITE), run.evaluation(SUITE)
    if has_manifest(answers) and not has_manifest(own):
        for name in _shards_below(answers):
            if not exists(join(own, name)):
                write_bytes(join(own, name), read_bytes(join(answers, name)))
        _take_over_weights(answers, own)


def _take_over_weights(source: str, folder: str) -> None:
    """Which weights gave the rows that are taken over, so that a point does not go on with others."""
    old, new = join(source, WEIGHTS), join(folder, WEIGHTS)
    if exists(old) and not exists(new):
        write_bytes(new, read_bytes(old))


def _take_over_costs(source: RunDir, run: RunDir) -> None:
    """Tells in a point's log what the shared stages cost, once, under names of their own."""
    old, new = (join(one.logs, "stages.jsonl") for one in (source, run))
    if exists(old) and not exists(new):
        with well_formed(old):
            told = [json.dumps(line | {"stage": f"{line['stage']} (shared)"}) + "\n" for line in stored_lines(old)]
        write_bytes(new, "".join(told).encode())


def _shards_below(root: str) -> list[str]:
    fs, inner = open_filesystem(root)
    found = fs.get_file_info(pafs.FileSelector(inner, recursive=True))
    return sorted(info.path[len(inner) :].lstrip("/") for info in found if info.path.endswith(".parquet"))


def _summarize(plan: Plan, root: str, points: Sequence[Job], failed: dict[str, str]) -> str:
    rows = []
    for job in points:
        folder = RunDir(job.root).evaluation(SUITE)
        metrics = load_metrics(folder) if job.root not in failed and has_manifest(folder) else None
        rows.append(SweepRow(job.label, job.root[len(root) :].lstrip("/"), metrics, failed.get(job.root)))
    tree = {
        "recipe": plan.base.model_dump(mode="json"),
        "grid": plan.grid,
        "finished": time.time(),
        "points": [
            {"label": job.label, "folder": row.folder, "fingerprint": fingerprint(job.recipe), "error": row.error}
            for job, row in zip(points, rows, strict=True)
        ],
    }
    write_bytes(join(root, RECORD), json.dumps(tree, indent=1).encode())
    return write_front(plan.base, plan.grid, rows, root)
