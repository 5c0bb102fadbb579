"""Which tasks lm-eval has, its own and those of a user's folder: names are looked up before anything starts."""

from __future__ import annotations

import difflib
import functools
from pathlib import Path
from typing import Any

from dat_ray.config.evaluation import UtilityConfig
from dat_ray.errors import InputError, error_line

TASKS, INCLUDE_PATH = "evaluation.utility.tasks", "evaluation.utility.include_path"


@functools.cache
def task_manager(include_path: str | None) -> Any:
    """lm-eval's index of tasks, groups and tags; kept, since reading its 14,000 files takes seconds.

    Raises:
        InputError: lm-eval cannot be imported.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        remedy = f"needs lm-eval ({error_line(error, 160)}): pip install 'dat-ray[utility]'"
        raise InputError(TASKS, "lm-eval", remedy) from error
    return TaskManager(include_path=include_path)


def check_tasks(config: UtilityConfig) -> None:
    """Looks up a recipe's benchmarks.

    Only names count. lm-eval would also take the path of a task file, which may name code: its folder has to be given
    as `include_path`, for which a recipe from elsewhere needs leave.

    Raises:
        InputError: lm-eval is not installed, it knows no task, group or tag of this name, or there is no such folder.
    """
    if not config.tasks:
        return
    if config.include_path is not None and not Path(config.include_path).is_dir():
        raise InputError(INCLUDE_PATH, config.include_path, "there is no such folder: give one that holds task files")
    names = task_manager(config.include_path).all_tasks
    for name in config.tasks:
        if name not in names:
            near = ", ".join(difflib.get_close_matches(name, names, n=3))
            meant = f"one that exists, such as {near}" if near else "a name that `lm-eval ls tasks` lists"
            raise InputError(
                TASKS, name, f"lm-eval has no such task: write {meant}, or give the folder of its file as include_path"
            )
