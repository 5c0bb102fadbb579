from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import psutil

import dat_ray.pipeline.measure as measure
from dat_ray.data.rundir import RunDir
from dat_ray.pipeline.measure import StageCost, record_stage, tree_bytes

MIB = 2**20
# What processes can have used in a second, and by how much the system's clocks of them are rounded.
MOST_CPUS, TICK = os.cpu_count() or 1, 0.1


def test_memory_of_children_counts() -> None:
    # A tree of its own: what else this process started, earlier tests' Ray among it, comes and goes.
    child = "import sys; block = bytearray(64 * 2**20); print('up', flush=True); sys.stdin.read()"
    parent = (
        "import subprocess, sys\n"
        "sys.stdin.readline()\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.PIPE)\n"
        "sys.stdin.readline()\n"
        "child.communicate(b'')\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tree:
        assert tree.stdin is not None
        assert tree.stdout is not None
        root = psutil.Process(tree.pid)
        before = tree_bytes(root)
        tree.stdin.write("\n")
        tree.stdin.flush()
        assert tree.stdout.readline() == "up\n"
        grown = tree_bytes(root) - before
        tree.communicate("\n")
    assert 60 * MIB < grown < 120 * MIB


def test_a_stage_s_cost_is_recorded_as_one_line_each(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 0.02)
    run, began = RunDir(str(tmp_path)), time.monotonic()
    for name in ("generate", "train"):
        with StageCost() as cost:
            time.sleep(0.1)
        record_stage(run, name, cost, rows=3)
    lines = [json.loads(line) for line in open(f"{run.logs}/stages.jsonl")]
    assert [line["stage"] for line in lines] == ["generate", "train"]
    took = time.monotonic() - began
    assert 0.1 <= lines[0]["seconds"] <= took
    assert lines[0]["peak_bytes"] > 10 * MIB
    assert lines[0]["rows"] == 3
    assert 0 <= lines[0]["cpu_seconds"] <= MOST_CPUS * took + TICK


def test_processor_time_of_children_counts_also_after_they_end(monkeypatch) -> None:
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 0.02)
    burn = "import time\nwhile time.process_time() < 1.2: pass\ninput()"
    began, before = time.monotonic(), time.process_time()
    with StageCost() as cost, subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE) as burning:
        assert burning.stdin is not None
        # It ends once samples have seen half of it, beside what this process used itself: the last one may be an interval old.
        while cost.cpu_seconds < 0.6 + time.process_time() - before:
            time.sleep(0.01)
        burning.communicate(b"\n")
    assert 0.6 <= cost.cpu_seconds <= MOST_CPUS * (time.monotonic() - began) + TICK
