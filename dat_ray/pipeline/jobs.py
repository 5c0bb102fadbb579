"""Run directories side by side: each is made by a Ray task, at most so many at a time, with one bar over the stages of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import exists, join
from dat_ray.data.stored import stored_lines
from dat_ray.errors import DatError
from dat_ray.placement import beside_the_driver
from dat_ray.progress import Progress, stage_line

# Seconds between two looks at what the jobs have finished.
LOOK_S = 2.0
# A task whose process dies is started again, and its run continued; its node is the driver's own.
RETRIES = 2


@dataclass(frozen=True)
class Job:
    """One Ray task, which makes a run directory or goes on with it.

    Attributes:
        label: for people.
        recipe: of its run directory.
        root: the run directory.
        sources: run directories that must be there first, and from which it takes over what is the same; empty for what is
            shared.
        stages: names of the lines that its `logs/stages.jsonl` will have, in order.
    """

    label: str
    recipe: Recipe
    root: str
    sources: tuple[str, ...]
    stages: tuple[str, ...]


RunJob = Callable[[Job], None]


@dataclass
class JobBoard:
    """Runs jobs, and counts the stages that they have finished.

    Attributes:
        verb: at the beginning of what is said of a job.
        parallel: jobs at the same time.
        progress: counts stages.
        done: stages of the jobs of earlier calls.
    """

    verb: str
    parallel: int
    progress: Progress
    done: int = 0

    def run(self, jobs: Sequence[Job], work: RunJob) -> dict[str, str]:
        """Runs jobs; returns the failed ones' reasons by folder."""
        task: Any = ray.remote(max_retries=RETRIES, **beside_the_driver())(_told)
        waiting, finished = list(jobs), []
        running: dict[Any, Job] = {}
        failed: dict[str, str] = {}
        while waiting or running:
            while waiting and len(running) < self.parallel:
                job = waiting.pop(0)
                running[task.remote(work, job)] = job
            ready, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_S)
            for ref in ready:
                job = running.pop(ref)
                finished.append(job)
                reason = _outcome(ref)
                if reason is not None:
                    failed[job.root] = reason
                stage_line(f"{self.verb}: {job.label}: {'done' if reason is None else 'FAILED: ' + reason}")
            counted = sum(len(stages_done(job)) for job in [*finished, *running.values()])
            self.progress.update(self.done + counted, "; ".join(f"{job.label} at {_stage_now(job)}" for job in running.values()))
        self.done += sum(len(stages_done(job)) for job in jobs)
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


def stages_done(job: Job) -> set[str]:
    """Those of a job's stages that its run directory tells of."""
    where = join(RunDir(job.root).logs, "stages.jsonl")
    if not exists(where):
        return set()
    return {str(line.get("stage")) for line in stored_lines(where)} & set(job.stages)


def _stage_now(job: Job) -> str:
    done = stages_done(job)
    return next((stage for stage in job.stages if stage not in done), job.stages[-1])
