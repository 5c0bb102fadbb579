from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dat_ray.cli import main
from dat_ray.config.loading import load_recipe
from dat_ray.data.rundir import RunDir, open_run
from dat_ray.data.shards import write_file, write_manifest, write_shard
from dat_ray.errors import InputError
from dat_ray.ops.status import read_status, show


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def rows(count: int) -> pa.Table:
    return pa.table({"candidate_id": [str(i) for i in range(count)]})


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Generation at 6 of 20 rows; nothing else."""
    run = open_run(str(tmp_path / "run"), load_recipe("demo"), resume=False)
    requests = f"{run.candidates(0)}/_input"
    write_manifest(requests, [write_shard(requests, "part-0.parquet", rows(20))], "f")
    write_file(f"{run.candidates(0)}/_checkpoint/a.parquet", rows(4))
    write_file(f"{run.candidates(0)}/_checkpoint/b.parquet", rows(2))
    write_file(f"{run.candidates(0)}/_checkpoint/c.pending.parquet", rows(9))
    return run


def log(run: RunDir, *events: dict[str, Any], age: float = 0.0) -> None:
    path = Path(run.logs) / "events-1.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"time": time.time() - age} | event) + "\n" for event in events))


def beat(**fields: Any) -> dict[str, Any]:
    base = {"event": "progress", "state": "running", "stage": "generate", "done": 6, "total": 20, "unit": "rows"}
    return base | {"per_second": 2.0, "seconds": 3.0, "note": "running"} | fields


def stage(status: dict[str, Any], name: str) -> dict[str, Any]:
    return next(found for found in status["stages"] if found["stage"] == name)


def test_a_running_stage_has_a_rate_and_a_time_left(run: RunDir) -> None:
    log(run, {"event": "start"}, beat())
    status = read_status(run.root)
    assert status["state"] == "running"
    found = stage(status, "generate")
    assert (found["state"], found["done"], found["total"], found["per_second"]) == ("running", 6, 20, 2.0)
    assert found["seconds_left"] == 7.0
    assert status["blocks"] is None
    assert "generate   running, 6/20 rows, 2 rows/s, 0:07 left, running" in show(status)


@pytest.mark.parametrize(
    "damage", [{"stage": None}, {"stage": {}}, {"state": 3}, {"total": [20]}, {"per_second": "2"}, {"note": None}]
)
def test_a_damaged_event_is_left_out(run: RunDir, damage: dict[str, Any]) -> None:
    log(run, {"event": "start"}, beat(), beat(per_second=9.0) | damage, {"event": "failure", "kind": 3})
    status = read_status(run.root)
    assert stage(status, "generate")["per_second"] == 2.0
    assert status["blocks"] is None


def test_a_stage_that_waits_says_for_what(run: RunDir) -> None:
    log(run, {"event": "start"}, beat(per_second=None, note="waiting for processes"))
    assert read_status(run.root)["blocks"] == "generate: waiting for processes"


def test_a_failure_and_a_kill_are_told_apart(run: RunDir) -> None:
    log(run, beat(), {"event": "failure", "kind": "DatError", "text": "too few CPUs"}, {"event": "end"})
    status = read_status(run.root)
    assert (status["state"], status["blocks"]) == ("stopped", "DatError: too few CPUs")
    assert stage(status, "generate")["state"] == "stopped"
    log(run, beat(), age=600)
    blocks = read_status(run.root)["blocks"]
    assert re.match(r"its process has not written for 1\d:\d\d", blocks)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1 and then nothing more of it"])
def test_a_shard_that_is_cut_short_has_no_rows_yet(run: RunDir, content: bytes) -> None:
    (Path(run.candidates(0)) / "_checkpoint/d.parquet").write_bytes(content)
    (Path(run.evaluation("default"))).mkdir(parents=True)
    (Path(run.evaluation("default")) / "part-base-direct-0.parquet").write_bytes(content)
    assert stage(read_status(run.root), "generate")["done"] == 6


def test_without_a_log_the_shards_speak(run: RunDir) -> None:
    status = read_status(run.root)
    assert status["state"] == "begun"
    assert (stage(status, "generate")["done"], stage(status, "generate")["total"]) == (6, 20)
    assert [found["state"] for found in status["stages"]] == ["stopped"] + ["not started"] * 4
    assert stage(status, "train")["total"] == load_recipe("demo").training.updates


def test_finished_stages_are_counted_from_their_manifests(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run.candidates(0)
    write_manifest(folder, [write_shard(folder, "part-0.parquet", rows(20))], "f")
    chosen = run.training_set(0)
    write_manifest(chosen, [write_shard(chosen, "part-0.parquet", rows(5))], "f")
    (Path(run.training(0))).mkdir(parents=True)
    (Path(run.training(0)) / "metrics.jsonl").write_text('{"update": 0}\n{"update": 1}\n')
    write_file(f"{run.evaluation('default')}/part-base-direct-0.parquet", rows(3))
    assert main(["status", run.root, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert set(status) == {"run", "recipe", "fingerprint", "state", "stages", "blocks", "cluster"}
    counts = [(found["stage"], found["state"], found["done"], found["total"]) for found in status["stages"]]
    assert counts == [
        ("generate", "complete", 20, 20),
        ("select", "complete", 5, 5),
        ("train", "stopped", 2, load_recipe("demo").training.updates),
        ("evaluate", "stopped", 3, None),
        ("report", "not started", 0, 1),
    ]


def test_no_run_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"RUN_DIR = .*: holds no run.json"):
        read_status(str(tmp_path))
