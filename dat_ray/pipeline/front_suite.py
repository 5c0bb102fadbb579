"""The suite of a study that asks adapters along each training, and the base model before them.

    STUDY/suites/fronts/      a run directory with one evaluation of all of them

Prompts are drawn once, and what one engine can serve is asked of it one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping

from dat_ray.config.front_section import FRONTS
from dat_ray.config.study import Study
from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import join
from dat_ray.pipeline.jobs import Job
from dat_ray.training.kept import adapters_along


def front_jobs(plan: Study, root: str, folders: Mapping[str, str], stage: str) -> list[Job]:
    """The job of the suite; none where the study has none.

    Args:
        plan: the study.
        root: its folder.
        folders: of the runs, by the names of their models.
        stage: name of the job's one stage.
    """
    if plan.front is None:
        return []
    return [Job(FRONTS, plan.front, join(root, "suites", FRONTS), tuple(folders.values()), (stage,))]


def adapters(plan: Study, folders: Mapping[str, str]) -> dict[str, str]:
    """Folders of the adapters along all trainings, by the names of `StudyRun.after`: arm by arm, seed by seed.

    Raises:
        InputError: a training kept none.
        ShardError: one has not been trained.
    """
    fronts = plan.config.fronts
    found: dict[str, str] = {}
    for run in plan.runs if fronts is not None else ():
        assert fronts is not None
        along = adapters_along(RunDir(folders[run.model]), run.recipe, fronts.every)
        found |= {run.after(updates): folder for updates, folder in along.items()}
    return found
