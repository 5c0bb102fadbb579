"""Loses a node under a stage, on a cluster of its own: python node_loss.py sampling|training FOLDER

Two nodes carry the stage's label. The one at work is taken away; the other one has to finish.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ray
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from dat_ray.config.schema import Recipe
from dat_ray.diagnosis import job_actors
from dat_ray.generation.stage import generate
from dat_ray.generation.watch import RowCounter
from dat_ray.models.loading import ADAPTER_WEIGHTS
from dat_ray.training import driver
from tests.ray.tiny_generation import ROWS, Faults, engines, tiny_recipe, tiny_run
from tests.ray.tiny_training import in_process, ready_run, save_tiny_chat_model, tiny_training_recipe
from tests.ray.worker_processes import updates_kept


def lose_node(cluster: Cluster, actor: str, when: Callable[[], bool], lost: list[str]) -> None:
    """Takes away the node on which an actor of this name lives, once `when()` holds."""
    while not when():
        time.sleep(0.05)
    host = next(a.node for a in job_actors() if actor in a.name and a.state == "ALIVE")
    node = next(node for node in cluster.list_all_nodes() if node.node_id == host)
    cluster.remove_node(node, allow_graceful=False)
    lost.append(host)


def pinned(recipe: Recipe, label: str) -> Recipe:
    cluster = recipe.cluster
    pools = {
        role: getattr(cluster, role).model_copy(update={"subcluster": label})
        for role in ("sampler", "target", "judge", "trainer")
    }
    return recipe.model_copy(update={"cluster": cluster.model_copy(update=pools)})


def main(kind: str, folder: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=3, labels={"ray-subcluster": kind})
    ray.init(address=cluster.address, log_to_driver=False)
    lost: list[str] = []
    if kind == "sampling":
        recipe = pinned(tiny_recipe(), kind)
        run = tiny_run(folder / "run", recipe)
        counter = RowCounter(run.candidates(0))
        arguments = (cluster, "SamplerActor", lambda: counter.count() >= 16, lost)
        thread = threading.Thread(target=lose_node, args=arguments, daemon=True)
        thread.start()
        # Slow enough that rows are left when the first ones are stored, however late the process that writes starts.
        report = generate(recipe, run, engines(Faults(str(folder), seconds_per_row=0.25)))
        assert (report.rows, report.errors) == (ROWS, 0), report
    else:
        save_tiny_chat_model(folder / "model")
        recipe = pinned(tiny_training_recipe(folder / "model"), kind)
        run = ready_run(folder / "run", recipe)
        arguments = (cluster, "RayTrainWorker", lambda: updates_kept(recipe, run) >= 4, lost)
        thread = threading.Thread(target=lose_node, args=arguments, daemon=True)
        thread.start()
        found = load_file(Path(driver.train(recipe, run).adapter) / ADAPTER_WEIGHTS)
        expected = in_process(recipe, run, folder / "alone")
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(lost) == 1, "the node was never lost"
    assert sum(node["Alive"] for node in ray.nodes()) == 2
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
