"""Generation grows from no node to several and back to none, and starts no training node."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.ray.own_cluster import autoscaling_cluster
from tests.ray.tiny_generation import ROWS
from tests.ray.worker_processes import PATIENCE

pytestmark = pytest.mark.slow
GROUPS = {
    name: {"resources": {"CPU": 2, "object_store_memory": 80_000_000}, "labels": {"ray-subcluster": name}, "max_workers": 3}
    for name in ("generation", "training")
}


def test_generation_scales_by_itself_from_nothing_to_nothing(tmp_path: Path) -> None:
    script = Path(__file__).with_name("autoscaling_driver.py")
    with autoscaling_cluster(GROUPS, idle_seconds=3) as cluster:
        done = cluster.run(
            sys.executable, str(script), str(tmp_path / "run"), str(tmp_path), RAY_ADDRESS=cluster.address, PACE="0.08"
        )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "seen.json").read_text())
    print(found["nodes"], done.stderr[-2000:])
    assert found["rows"] == ROWS
    counts = [len(nodes) for nodes in found["nodes"]]
    assert counts[0] == counts[-1] == 0, found["nodes"]
    assert max(counts) >= 2, found["nodes"]
    assert {label for nodes in found["nodes"] for label in nodes} == {"generation"}
    # What no group can hold is refused, by the autoscaler's own word, before anything waits for it.
    # It has minutes for its answer, and is not waited for any longer than it takes.
    assert found["of no group"] == "never"
    assert found["seconds to refuse"] < PATIENCE
