"""A node is about to be taken away under training, on a cluster of its own: python preemption.py FOLDER

No checkpoint is due before the end, so that whatever training goes on from was written because of the notice. It goes on
with one worker where there were two. Training waits for the notice at one update and for the loss at another.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # its stub leaves it out
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from safetensors.torch import load_file

from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir
from dat_ray.diagnosis import job_actors
from dat_ray.models.adapters import ADAPTER_WEIGHTS
from dat_ray.training import driver
from dat_ray.training.update_metrics import MetricsLog, read_metrics
from tests.ray.tiny_generation import await_release, release
from tests.ray.tiny_training import in_process, ready_run, save_tiny_chat_model, tiny_training_recipe
from tests.ray.worker_processes import updates_kept, wait_for_slow_nodes

# Nobody waits for its end: the node goes once the checkpoint is there.
SECONDS_OF_NOTICE = 600
UPDATES = 60
# Before these updates every worker waits until it knows of the notice, and until the node is gone.
NOTICED_BEFORE, LOST_BEFORE = 3, 12
# Ray may count the node that goes once more, and asks for less after so long; up to three times, so that it may be short.
SECONDS_TO_START = 20


def patient_worker(notes: Path) -> Callable[[dict[str, str]], Any]:
    """`driver.train_worker` with the two waits; notes of how many workers it is one."""

    def work(config: dict[str, str]) -> Any:
        from ray.train.v2._internal.execution.context import get_train_context

        from dat_ray.training import driver
        from dat_ray.training.step import FineTuning

        take_update = FineTuning.update
        with open(notes / "workers", "a") as stream:
            stream.write(f"{ray.train.get_context().get_world_size()}\n")

        def held(objective: Any, trainer: Any, update: int) -> Any:
            if update == NOTICED_BEFORE:
                (notes / "at work").touch()
                while get_train_context().preemption_context.preemption_info is None:
                    time.sleep(0.02)
            if update == LOST_BEFORE:
                await_release(notes)
            return take_update(objective, trainer, update)

        with patch.object(FineTuning, "update", held):
            return driver.train_worker(config)

    return work


def take_node_away(cluster: Cluster, recipe: Recipe, run: RunDir, notes: Path, notices: list[int]) -> None:
    """Gives notice of a node at work, waits for a checkpoint, takes the node."""
    while not (notes / "at work").exists():
        time.sleep(0.05)
    host = next(actor.node for actor in job_actors() if "RayTrainWorker" in actor.name and actor.state == "ALIVE")
    deadline = int((time.time() + SECONDS_OF_NOTICE) * 1000)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=cluster.address).drain_node(host, reason, "spot instance reclaimed", deadline)
    assert accepted, why
    while not (kept := updates_kept(recipe, run)):
        time.sleep(0.05)
    notices.append(kept)
    node = next(node for node in cluster.list_all_nodes() if node.node_id == host)
    cluster.remove_node(node, allow_graceful=False)
    release(notes)


def main(folder: Path) -> None:
    wait_for_slow_nodes()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    save_tiny_chat_model(folder / "model")
    recipe = tiny_training_recipe(
        folder / "model",
        updates=UPDATES,
        checkpoint_every=UPDATES,
        workers=(1, 2),
        worker_group_start=SECONDS_TO_START,
        # Sums in another order differ in the last bits. Slow steps keep that from growing: at the recipe's own rate it was 1%
        # after 65 updates.
        learning_rate=1e-3,
    )
    run = ready_run(folder / "run", recipe)
    notices: list[int] = []
    threading.Thread(target=partial(take_node_away, cluster, recipe, run, folder, notices), daemon=True).start()
    with patch.object(driver, "train_worker", patient_worker(folder)):
        adapter = driver.train(recipe, run).adapter
    seen = [int(line) for line in (folder / "workers").read_text().split()]
    print(f"checkpoint of update {notices} at the notice; workers {seen}")
    assert len(notices) == 1, "no checkpoint was written at the notice"
    assert notices[0] == NOTICED_BEFORE + 1, "the checkpoint of the notice"
    assert sum(node["Alive"] for node in ray.nodes()) == 2
    assert seen == [2, 2, 1], seen
    log = read_metrics(run.training(0))
    assert [row["update"] for row in log] == list(range(UPDATES))
    alone = MetricsLog(str(folder / "alone"))
    expected = in_process(recipe, run, folder / "alone", alone)
    alone.close()
    drift = [abs(a["loss"] - b["loss"]) for a, b in zip(log, read_metrics(str(folder / "alone")), strict=True)]
    apart = max(
        (tensor - expected[name]).abs().max().item() for name, tensor in load_file(Path(adapter) / ADAPTER_WEIGHTS).items()
    )
    print(f"largest difference of a loss {max(drift):.2g}, of a weight {apart:.2g}")
    assert max(drift) < 1e-3, drift
    assert apart < 1e-3
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
