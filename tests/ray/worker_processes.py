"""What the drills do to a cluster's processes, and the seed of the moments at which they do it."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import ray

from dat_ray.config.loading import fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir
from dat_ray.training.checkpoint import FolderCheckpoints

SEED_VARIABLE = "DAT_DRILL_SEED"
# How long a drill waits for anything: past pytest's own limit, which tells a hang. A driver that got no core for four minutes
# was taken for one.
PATIENCE = 3600.0
# What a process that makes drills says after one that passed.
PASSED = "passed"


def drill_moments() -> random.Random:
    """The moments of one drill, from a seed that is printed; DAT_DRILL_SEED repeats a drill."""
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**32))
    print(f"moments drawn with {SEED_VARIABLE}={seed}")
    return random.Random(seed)


def _below_here(fits: Callable[[str], bool]) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if fits(" ".join(process.cmdline())):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def ray_workers() -> list[psutil.Process]:
    """Ray's worker processes below this one, busy and idle."""
    return _below_here(lambda command: command.startswith("ray::"))


def actors(name: str) -> list[psutil.Process]:
    """The processes of a role's pool, as `SamplerActor`, while they are at work."""
    return _below_here(lambda command: command.startswith("ray::") and name in command)


def training_workers() -> list[psutil.Process]:
    """Ray Train's worker processes below this one."""
    return _below_here(lambda command: "RayTrainWorker" in command)


def updates_kept(recipe: Recipe, run: RunDir) -> int:
    """Updates of the newest checkpoint."""
    names = FolderCheckpoints(f"{run.training(0)}/state-{fingerprint(recipe)}").kept()
    return int(names[-1].rpartition("-")[2]) if names else 0


@contextmanager
def killed_once(
    processes: Callable[[], list[psutil.Process]],
    when: Callable[[], bool],
    then: Callable[[], None] = lambda: None,
) -> Iterator[list[int]]:
    """Kills one of the processes with SIGKILL once `when()` holds. Yields the ids of the killed.

    `then()` follows the kill: it releases what was held so that the run is not over before.
    """
    killed: list[int] = []
    stop = threading.Event()
    failures: list[Exception] = []

    def watch() -> None:
        try:
            kill_when_due()
        except Exception as error:
            # What waits for `then` must not wait for ever because this thread is gone.
            failures.append(error)
            then()

    def kill_when_due() -> None:
        while not stop.wait(0.05):
            if not when():
                continue
            for process in processes()[-1:]:
                process.kill()
                killed.append(process.pid)
            if killed:
                then()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()
    assert not failures, failures


def wait_for_slow_nodes() -> None:
    """Lets `ray.cluster_utils` wait for a node for as long as it takes: Ray's 30 s are too few where no core is free."""
    services = ray._private.services
    get_node, wait_for_node = services.get_node, services.wait_for_node

    def get_patiently(*arguments: Any, **named: Any) -> Any:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return get_node(*arguments, **named)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

    services.get_node = get_patiently
    services.wait_for_node = lambda address, socket, _: wait_for_node(address, socket, PATIENCE)
