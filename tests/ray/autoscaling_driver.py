"""A driver for the test of independent scaling: generates on a pinned pool and notes which nodes are up, second by second.

python autoscaling_driver.py RUN_DIR NOTES
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from pathlib import Path

import ray

from dat_ray.config.cluster import ClusterConfig, Pool
from dat_ray.generation.autoscaler import ask_autoscaler
from dat_ray.generation.capacity import SUBCLUSTER_LABEL
from dat_ray.generation.stage import generate
from dat_ray.raysession import start_ray
from tests.ray.tiny_generation import Faults, engines, tiny_recipe, tiny_run
from tests.ray.worker_processes import PATIENCE

SECONDS_TO_SHRINK = 120.0


def subclusters() -> list[str]:
    labels = [node["Labels"].get("ray-subcluster") for node in ray.nodes() if node["Alive"]]
    return sorted(label for label in labels if label)


if __name__ == "__main__":
    root, notes = sys.argv[1:]
    pinned = {"num_cpus": 0.4, "subcluster": "generation"}
    recipe = tiny_recipe(
        cluster={"sampler": pinned | {"num_cpus": 1, "max_actors": 2}, "target": pinned, "judge": pinned | {"num_cpus": 0.1}},
        timeouts={"no_progress": 120, "engine_start": 120},
    )
    seen: list[list[str]] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.3):
            now = subclusters()
            if not seen or now != seen[-1]:
                seen.append(now)

    with start_ray(ClusterConfig()):
        began = time.monotonic()
        never = ask_autoscaler(Pool(subcluster="sampling"), SUBCLUSTER_LABEL, PATIENCE)
        refused = time.monotonic() - began
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        report = generate(recipe, tiny_run(root, recipe), engines(Faults(notes, float(os.environ["PACE"]))))
        deadline = time.monotonic() + SECONDS_TO_SHRINK
        while subclusters() and time.monotonic() < deadline:
            gc.collect()  # what Ray Data's plan refers to in circles keeps a node busy in a process that has nothing else to do
            time.sleep(0.3)
        time.sleep(0.5)
        stop.set()
        thread.join()
    Path(notes, "seen.json").write_text(
        json.dumps({"nodes": seen, "rows": report.rows, "of no group": never, "seconds to refuse": refused})
    )
