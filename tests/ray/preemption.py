"""A node is about to be taken away under training, on a cluster of its own: python preemption.py FOLDER

No checkpoint is due before the end, so that whatever training goes on from was written because of the notice. It goes on
with one worker where there were two.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from safetensors.torch import load_file

from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir
from dat_ray.diagnosis import job_actors
from dat_ray.models.loading import ADAPTER_WEIGHTS
from dat_ray.training import driver
from dat_ray.training.metrics import MetricsLog, read_metrics
from tests.ray.tiny_training import in_process, ready_run, save_tiny_chat_model, tiny_training_recipe
from tests.ray.worker_processes import updates_kept

SECONDS_OF_NOTICE = 10
UPDATES = 250
# Ray may count the node that goes once more, and then has to find out.
SECONDS_TO_START = 20


def take_node_away(cluster: Cluster, recipe: Recipe, run: RunDir, notices: list[int]) -> None:
    """Gives notice of a node at work, waits for a checkpoint, takes the node."""
    while len(read_metrics(run.training(0))) < 3:
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


def count_workers(seen: list[int], stop: threading.Event) -> None:
    """How many training workers there are, whenever that changes."""
    while not stop.wait(0.2):
        count = len([actor for actor in job_actors() if "RayTrainWorker" in actor.name and actor.state == "ALIVE"])
        if not seen or seen[-1] != count:
            seen.append(count)


def main(folder: Path) -> None:
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
        # Sums in another order differ in the last bits. Slow steps keep that from growing: at the recipe's own rate a fast
        # machine, which comes to hundreds of updates before the notice, was 1% off after 65.
        learning_rate=1e-3,
    )
    run = ready_run(folder / "run", recipe)
    notices: list[int] = []
    seen: list[int] = []
    stop = threading.Event()
    threading.Thread(target=take_node_away, args=(cluster, recipe, run, notices), daemon=True).start()
    threading.Thread(target=count_workers, args=(seen, stop), daemon=True).start()
    adapter = driver.train(recipe, run).adapter
    stop.set()
    print(f"checkpoint of update {notices} at the notice; workers {seen}")
    assert len(notices) == 1, "no checkpoint was written at the notice"
    assert 0 < notices[0] < UPDATES, "the checkpoint of a notice, not that of the end"
    assert sum(node["Alive"] for node in ray.nodes()) == 2
    assert 2 in seen, seen
    assert 1 in seen[seen.index(2) :], seen
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
