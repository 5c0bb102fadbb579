"""A driver with a private Ray that gets a signal at a named point of its work, as a terminal or a scheduler would send it.

python -m tests.ray.stopped_driver PLAN.json

The plan names what is done, in order, and the point: `{"model": ..., "root": ..., "works": ["train", "generate"], "stage":
"train", "at": 4, "signal": "SIGINT"}`. What is stopped holds a little after that point, so that no machine is too fast.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from dat_ray import cli
from dat_ray.pipeline.jobs import Job, JobBoard
from dat_ray.pipeline.stages import session
from dat_ray.progress import Progress
from dat_ray.training import driver
from tests.ray.tiny_generation import Faults, engines, tiny_recipe, tiny_run
from tests.ray.tiny_training import held_worker, ready_run, tiny_training_recipe

HELD_UPDATE, HELD_ROW = 10, 40


def train(root: str, model: str, held: bool) -> None:
    recipe = tiny_training_recipe(Path(model))
    work = held_worker(root, HELD_UPDATE) if held else driver.train_worker
    with patch.object(driver, "train_worker", work):
        driver.train(recipe, ready_run(Path(root) / "training", recipe))


def generate(root: str, model: str, held: bool) -> None:
    from dat_ray.generation.stage import generate as stage

    recipe = tiny_recipe()
    stage(recipe, tiny_run(Path(root) / "generation", recipe), engines(Faults(root, hold_after=HELD_ROW if held else None)))


def sweep_point(root: str, model: str, held: bool) -> None:
    """Training in a Ray task that drives a run of its own."""
    recipe = tiny_training_recipe(Path(model))
    job = Job("point", recipe, str(Path(root) / "training"), (), ("train",))
    with Progress("sweep", 1) as progress:
        JobBoard("sweep", 1, progress).run([job], partial(_point, model, held))


def _point(model: str, held: bool, job: Job) -> None:
    train(str(Path(job.root).parent), model, held)


WORKS = {"train": train, "generate": generate, "sweep": sweep_point}


def _signal_at(stage: str, at: int, number: int, root: str) -> None:
    shown, sent = Progress.update, list[bool]()

    def update(self: Progress, done: int, note: str = "") -> None:
        shown(self, done, note)
        if stage == "sweep":  # it sees nothing of a point's updates
            done = len(list((Path(root) / "training").glob("training/round-0/state-*/update-*")))
        if self.stage == stage and done >= at and not sent:
            sent.append(True)
            os.kill(os.getpid(), number)

    patch.object(Progress, "update", update).start()


def main(plan: dict[str, Any]) -> int:
    # Tests that run in the background hand an ignored SIGINT on.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def work(_arguments: object) -> int:
        recipe = tiny_recipe()
        with session(recipe, tiny_run(Path(plan["root"]) / "session", recipe)):
            for name in plan["works"]:
                WORKS[name](plan["root"], plan["model"], name == plan["stage"])
        return 0

    _signal_at(plan["stage"], plan["at"], signal.Signals[plan["signal"]], plan["root"])
    with patch.object(cli, "_adapt", work):
        return cli.main(["adapt", "base", "--out", "x"])


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text())))
