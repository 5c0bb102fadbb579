"""The suite of a study that asks adapters along each training, and the base model before them.

    STUDY/suites/fronts/      a run directory with one evaluation of all of them

Prompts are drawn once, and what one engine can serve is asked of it one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping

from dat_ray.config.study import Study
from dat_ray.data.rundir import RunDir
from dat_ray.training.kept import adapters_along


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
