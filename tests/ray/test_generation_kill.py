"""A driver that is killed and started again: every row once, each as in a run that nothing disturbed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import has_manifest, read_file, read_table
from dat_ray.generation.finish import CHECKPOINT, committed_checkpoints
from dat_ray.generation.stage import generate
from dat_ray.generation.watch import RowCounter
from tests.ray.tiny_generation import Faults, drawn, engines, tiny_recipe, tiny_run

KILLS = 5
SECONDS_PER_ROW = 0.06


def start(address: str, run: RunDir, notes: Path) -> subprocess.Popen:
    notes.mkdir()
    script = Path(__file__).with_name("generation_driver.py")
    return subprocess.Popen(
        [sys.executable, str(script), run.root, str(notes), str(SECONDS_PER_ROW)],
        env={**os.environ, "RAY_ADDRESS": address},
        stdout=subprocess.DEVNULL,
        stderr=(notes / "stderr").open("wb"),
    )


def committed(root: str) -> set[str]:
    return {
        identifier
        for name in committed_checkpoints(root)
        for identifier in read_file(f"{root}/{CHECKPOINT}/{name}")["candidate_id"].to_pylist()
    }


@pytest.mark.slow
def test_a_driver_killed_again_and_again_leaves_the_rows_of_an_undisturbed_run(ray_cluster, tmp_path):
    seed = random.SystemRandom().randrange(2**32)
    print(f"moments drawn with seed {seed}")
    moments = random.Random(seed)
    recipe = tiny_recipe()
    run = tiny_run(tmp_path / "killed", recipe)
    root = run.candidates(0)

    killed = 0
    for index in range(KILLS):
        before, counter = committed(root), RowCounter(root)
        until = len(before) + moments.randint(0, 10)
        driver = start(ray_cluster, run, tmp_path / f"leg-{index}")
        deadline = time.monotonic() + 120
        while driver.poll() is None and counter.count() < until and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.7))
        if driver.poll() is not None:
            break
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        if has_manifest(root):  # it was finished, and killed on its way out
            break
        killed += 1
        assert before <= committed(root)
        assert not before & set(drawn(tmp_path / f"leg-{index}")), "a finished row was made again"
    assert killed >= 3

    last = start(ray_cluster, run, tmp_path / "last")
    assert last.wait(timeout=240) == 0, (tmp_path / "last" / "stderr").read_text()

    whole = tiny_run(tmp_path / "whole", recipe)
    (tmp_path / "notes").mkdir()
    generate(recipe, whole, engines(Faults(str(tmp_path / "notes"))))
    key = "candidate_id"
    assert read_table(root).sort_by(key).to_pylist() == read_table(whole.candidates(0)).sort_by(key).to_pylist()
