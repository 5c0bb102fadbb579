"""Ctrl-C and SIGTERM at named points of the stages: exit 130, what to do next, nothing left, and an equal result afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from dat_ray.data.rundir import RunDir
from dat_ray.generation.stage import generate
from dat_ray.models.adapters import ADAPTER_WEIGHTS
from dat_ray.training import driver
from tests.ray.drivers import assert_as_undisturbed
from tests.ray.tiny_generation import Faults, drawn, engines, tiny_recipe, tiny_run
from tests.ray.tiny_training import in_process, ready_run, tiny_training_recipe
from tests.ray.worker_processes import PATIENCE, updates_kept

pytestmark = [pytest.mark.slow, pytest.mark.fault]

REPOSITORY = Path(__file__).parents[2]
MARK = "DAT_TEST_STOPPED"


@pytest.fixture
def temporary() -> Iterator[Path]:
    # Ray's sockets lie below it, and their paths must stay short.
    folder = Path(tempfile.mkdtemp(prefix="d-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _run(temporary: Path, **plan: Any) -> None:
    """Runs a driver that is stopped; it says so, ends with 130 and leaves neither processes nor temporary folders."""
    mark = uuid.uuid4().hex
    (temporary / "plan.json").write_text(json.dumps(plan))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {
        MARK: mark,
        "TMPDIR": str(temporary),
        "PYTHONPATH": str(REPOSITORY),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_worker_niceness": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.ray.stopped_driver", str(temporary / "plan.json")],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 130, done.stderr[-3000:]
    assert done.stderr.endswith("dat adapt: stopped; what is finished is kept, --resume continues\n")
    assert "Traceback" not in done.stderr
    assert _marked(mark) == []
    assert [path.name for path in temporary.glob("dat-*")] == []


def _marked(mark: str) -> list[str]:
    """Living processes that inherited the driver's environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


@pytest.mark.drill
@pytest.mark.parametrize("also_in_the_training", [False, True], ids=["after a training", "in one and after it"])
def test_ctrl_c_in_the_stage_after_a_training(
    also_in_the_training: bool, ray_cluster: str, model: Path, generated: RunDir, temporary: Path, tmp_path: Path
) -> None:
    plan = {"root": str(tmp_path), "model": str(model), "signal": "SIGINT"}
    recipe = tiny_training_recipe(model)
    run = RunDir(str(tmp_path / "training"))
    if also_in_the_training:
        _run(temporary, works=["train"], stage="train", at=8, **plan)
        # The eighth update is seen just before its checkpoint is written.
        assert updates_kept(recipe, run) in (4, 8)
        assert not Path(run.adapter(0)).exists()

    _run(temporary, works=["train", "generate"], stage="generate", at=8, **plan)
    found = load_file(Path(run.adapter(0)) / ADAPTER_WEIGHTS)
    expected = in_process(recipe, ready_run(tmp_path / "training", recipe), tmp_path / "alone")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    assert len(drawn(tmp_path)) >= 8
    notes = tmp_path / "after"
    notes.mkdir()
    stopped = tiny_run(tmp_path / "generation", tiny_recipe())
    generate(tiny_recipe(), stopped, engines(Faults(str(notes))))
    assert_as_undisturbed(stopped, generated)


@pytest.mark.drill
def test_sigterm_in_a_point_of_a_sweep(ray_cluster: str, model: Path, temporary: Path, tmp_path: Path) -> None:
    """The point's driver is a Ray task, and its workers are two processes further."""
    _run(temporary, works=["sweep"], stage="sweep", at=1, root=str(tmp_path), model=str(model), signal="SIGTERM")
    recipe = tiny_training_recipe(model, updates=24)
    run = ready_run(tmp_path / "training", recipe)
    assert updates_kept(recipe, run) >= 4
    found = load_file(Path(driver.train(recipe, run).adapter) / ADAPTER_WEIGHTS)
    expected = in_process(recipe, run, tmp_path / "alone")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
