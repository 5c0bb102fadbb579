"""`dat sweep`: every point of a grid is a run of its own, driven by a Ray task; what points share is made once.

    SWEEP/sweep.json, index.html, front.csv
    SWEEP/shared/HASH/     candidates, and the base model's answers, of all points whose inputs to them are the same
    SWEEP/points/NAME/     one run directory each, complete by itself

A point that fails is told and does not stop the others. The same command with `--resume` goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from dat_ray.config.loading import fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.config.sweep import EVALUATION, Plan, Point, shared_recipe, stage_fingerprint
from dat_ray.data.links import refuse_links
from dat_ray.data.rundir import RunDir, open_run
from dat_ray.data.shards import has_manifest, join, write_bytes
from dat_ray.errors import DatError
from dat_ray.evaluation.compared import BASE, Model
from dat_ray.evaluation.results import load_metrics
from dat_ray.generation.select import needs_candidates
from dat_ray.pipeline.jobs import Job, JobBoard, RunJob
from dat_ray.pipeline.shared import check_empty, take_over
from dat_ray.pipeline.stages import STAGES, check_inputs, run_stages
from dat_ray.progress import Progress, stage_line
from dat_ray.raysession import start_ray
from dat_ray.reporting.sweep import SweepRow, write_front

RECORD = "sweep.json"
SUITE = "default"
# What is made once for all points that share it.
SHARED = ("generate", "evaluate")


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
    if not resume:
        check_empty(root, "--sweep-dir")
    for recipe in {stage_fingerprint(p.recipe, (*EVALUATION, "training")): p.recipe for p in plan.points}.values():
        check_inputs(recipe)
    shared = {_shared_name(point.recipe): point.recipe for point in plan.points}
    stage_line(f"sweep {root}: {len(plan.points)} points, {len(shared)} sets of shared stages, {plan.config.parallel} at a time")
    first = [_shared_job(plan, recipe, root, name) for name, recipe in shared.items()]
    points = [_point_job(point, root) for point in plan.points]
    total = sum(len(job.stages) for job in [*first, *points])
    with start_ray(plan.base.cluster), Progress("sweep", total, "stages") as progress:
        board = JobBoard("sweep", plan.config.parallel, progress)
        failed = board.run(first, share)
        lost = {job.root: failed[job.sources[0]] for job in points if job.sources[0] in failed}
        ready = [job for job in points if job.root not in lost]
        failed |= lost | board.run(ready, work)
    page = _summarize(plan, root, points, failed)
    if any(job.root in failed for job in points):
        told = "; ".join(f"{job.label}: {failed[job.root]}" for job in points if job.root in failed)
        raise DatError(
            f"{sum(job.root in failed for job in points)} of {len(points)} points failed ({told[:600]}); "
            f"the others are in {page}; --resume tries them again"
        )
    stage_line(f"sweep: {page}")
    return page


def _shared_name(recipe: Recipe) -> str:
    candidates = "with" if needs_candidates(recipe) else "without"
    return f"{stage_fingerprint(recipe, EVALUATION)}-{candidates}-candidates"


def _shared_job(plan: Plan, recipe: Recipe, root: str, name: str) -> Job:
    own = shared_recipe(plan, recipe, EVALUATION)
    if needs_candidates(own) != needs_candidates(recipe):
        own = own.model_copy(update={"selection": recipe.selection, "training": recipe.training})
    return Job(f"shared {name[:8]}", own, join(root, "shared", name), (), SHARED)


def _point_job(point: Point, root: str) -> Job:
    shared = join(root, "shared", _shared_name(point.recipe))
    return Job(point.label, point.recipe, join(root, "points", point.name), (shared,), tuple(STAGES))


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
    take_over([RunDir(source) for source in job.sources], run, job.recipe, SUITE)
    run_stages(job.recipe, run, tuple(STAGES))


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
