"""Generation drivers in processes of their own, which a drill starts, kills and starts again.

A fork of a process that has imported everything starts in a moment, so that a drill can afford many kills.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import read_file, read_table
from dat_ray.errors import DatError
from dat_ray.generation.finish import CHECKPOINT, committed_checkpoints
from dat_ray.generation.stage import generate
from tests.ray.tiny_generation import Faults, engines, request_ids, tiny_recipe, tiny_run
from tests.ray.worker_processes import PATIENCE

_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(["dat_ray.generation.stage", "ray.data", "tests.ray.drivers"])


def _drive(address: str, root: str, faults: Faults, log: str) -> None:
    sys.stdout = sys.stderr = open(log, "w", buffering=1)
    os.environ["RAY_ADDRESS"] = address
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    recipe = tiny_recipe()
    try:
        print(generate(recipe, tiny_run(root, recipe), engines(faults)))
    except KeyboardInterrupt:
        sys.exit(130)
    except DatError as error:
        print(error)
        sys.exit(error.exit_code)
    except BaseException:
        traceback.print_exc()
        sys.exit(99)


def start_driver(address: str, root: str, faults: Faults) -> BaseProcess:
    """Generates into a run directory from a process of its own; what it says goes to `driver.log` of its notes."""
    notes = Path(faults.notes)
    notes.mkdir(parents=True)
    driver = _fork.Process(target=_drive, args=(address, root, faults, str(notes / "driver.log")), daemon=True)
    driver.start()
    return driver


def said(faults: Faults) -> str:
    return (Path(faults.notes) / "driver.log").read_text()


def committed(root: str) -> set[str]:
    """Ids of the rows that a crash of any process would not cost."""
    return {
        identifier
        for name in committed_checkpoints(root)
        for identifier in read_file(f"{root}/{CHECKPOINT}/{name}")["candidate_id"].to_pylist()
    }


def assert_as_undisturbed(run: RunDir, undisturbed: RunDir) -> None:
    """Every row that was asked for, once, and equal to the row of a run that nothing disturbed."""
    rows, expected = (read_table(each.candidates(0)).sort_by("candidate_id") for each in (run, undisturbed))
    ids = rows["candidate_id"].to_pylist()
    assert ids == sorted(request_ids(run, tiny_recipe()))
    assert len(set(ids)) == len(ids)
    assert rows.to_pylist() == expected.to_pylist()


def wait_until(condition: Callable[[], bool], driver: BaseProcess) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the drill waits for something that does not come"
        if not driver.is_alive():
            return
        time.sleep(0.02)
