"""Loses a node under a stage, on a cluster of its own: each line of its input, as `sampling FOLDER`, is a drill.

Two nodes carry the stage's label. The one at work is taken away; the other one has to finish. Answers "passed" to a drill that
passed and ends at one that did not. The driver's node stays from drill to drill; the others are new ones each time.

For `sampling` and `training` both are there from the start. For the others the driver's node has no CPU free and the node
that will go is the only other one, so that Ray puts on it every task, and every actor that asks for something, unless it is bound
to a node. An actor that asks for nothing and is not bound Ray puts on any node: `ledger` takes care that it is the one that goes.
The node that takes over comes later.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray import cloudpickle
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from dat_ray.config.schema import Recipe
from dat_ray.config.sweep import Plan, Point, SweepConfig
from dat_ray.data.rundir import RunDir, open_run
from dat_ray.data.shards import read_table
from dat_ray.diagnosis import job_actors
from dat_ray.evaluation.stage import evaluate
from dat_ray.generation import stage
from dat_ray.generation.actors import RemoteLedger
from dat_ray.generation.stage import generate
from dat_ray.generation.watch import RowCounter
from dat_ray.models.adapters import ADAPTER_WEIGHTS
from dat_ray.ops import nodes as doctoring
from dat_ray.own_stdout import own_stdout
from dat_ray.pipeline import sweep as sweeping
from dat_ray.pipeline.jobs import Job
from dat_ray.placement import on_node
from dat_ray.training import driver
from tests.ray import tiny_evaluation
from tests.ray.tiny_generation import ROWS, Faults, await_release, engines, release, tiny_recipe, tiny_run
from tests.ray.tiny_training import held_worker, in_process, ready_run, save_tiny_chat_model, tiny_training_recipe
from tests.ray.worker_processes import PASSED, updates_kept, wait_for_slow_nodes

cloudpickle.register_pickle_by_value(sys.modules[__name__])

HEAD_CPUS, NODE_CPUS = 4, 6
# Rows that are stored when the node goes, and rows that are drawn before the sampler waits for it to be gone.
STORED, DRAWN = 16, 40
LEDGERS = 12


class Nodes:
    """The driver's node and those of one drill, and what was lost of them.

    Attributes:
        label: of the nodes that may hold the stage's engines.
        lost: id of the node that was taken away.
        patch: undone after the drill.
    """

    def __init__(self) -> None:
        self.label, self.lost, self.patch = "", "", pytest.MonkeyPatch()
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": HEAD_CPUS, "include_dashboard": False})
        ray.init(address=self._cluster.address, log_to_driver=False)
        self.driver = ray.get_runtime_context().get_node_id()

    def begin(self, label: str, count: int) -> None:
        """Starts so many nodes of a label."""
        self.label, self.lost = label, ""
        for _ in range(count):
            self.add()

    def end(self) -> None:
        """Takes away what the drill left."""
        self.patch.undo()
        for node in live_nodes() - {self.driver}:
            self.lose(node)

    def add(self) -> None:
        self._cluster.add_node(num_cpus=NODE_CPUS, labels={"ray-subcluster": self.label})

    def lose(self, node: str) -> None:
        """Takes a node away as its owner would, without a word, and returns once the cluster knows."""
        assert node != self.driver
        self._cluster.remove_node(next(n for n in self._cluster.list_all_nodes() if n.node_id == node), allow_graceful=False)
        self.lost = node
        while node in live_nodes():
            time.sleep(0.05)

    def close(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()


def live_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def home_of(actor: str) -> str:
    """The node on which an actor of this name lives."""
    return next(a.node for a in job_actors() if actor in a.name and a.state == "ALIVE")


def this_node() -> str:
    return ray.get_runtime_context().get_node_id()


class Holder:
    """Holds the CPUs that it was given."""

    def ready(self) -> None: ...


def fill_the_drivers_node(nodes: Nodes) -> Any:
    """Takes every CPU of the driver's node; proves that Ray then puts on the other one a task that asks for nothing."""
    holder = ray.remote(num_cpus=HEAD_CPUS, **on_node(nodes.driver))(Holder).remote()
    ray.get(holder.ready.remote())
    places = ray.get([ray.remote(num_cpus=0)(this_node).remote() for _ in range(4)])
    assert set(places) == live_nodes() - {nodes.driver}, "the placement is not forced"
    return holder


def unlucky(start: Callable[..., RemoteLedger], nodes: Nodes) -> Callable[..., RemoteLedger]:
    """`start_ledger` with the worst luck: of many ledgers the one is used that does not stand on the driver's node, if any.

    Where Ray is free to choose, all of them stand there in one case of 2 ** LEDGERS.
    """

    def started(*arguments: Any) -> RemoteLedger:
        ledgers = [start(*arguments) for _ in range(LEDGERS)]
        for one in ledgers:
            one.note()  # answers once it stands somewhere
        homes = [ray._private.state.actors(one.actor._actor_id.hex())["Address"]["NodeID"] for one in ledgers]
        elsewhere = sum(home != nodes.driver for home in homes)
        print(f"{elsewhere} of {LEDGERS} ledgers stand elsewhere than the driver")
        used = next((one for one, home in zip(ledgers, homes, strict=True) if home != nodes.driver), ledgers[0])
        for one in ledgers:
            if one is not used:
                one.close()
        return used

    return started


def during(work: Callable[[], Any], when: Callable[[], bool], attack: Callable[[], None], notes: Path) -> Any:
    """`work()`, with `attack()` once `when()` holds; afterwards the engines go on, whatever came of it.

    The work is done in a thread, since only the main one may start a node.
    """
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        try:
            until(lambda: running.done() or when())
            if not running.done():
                attack()
        finally:
            release(notes)
        return running.result()


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.05)


def pinned(recipe: Recipe, label: str) -> Recipe:
    cluster = recipe.cluster
    pools = {
        role: getattr(cluster, role).model_copy(update={"subcluster": label})
        for role in ("sampler", "target", "judge", "trainer")
    }
    return recipe.model_copy(update={"cluster": cluster.model_copy(update=pools)})


def swap_nodes(nodes: Nodes) -> None:
    """A node comes, and the one that did all the work goes."""
    [other] = live_nodes() - {nodes.driver}
    nodes.add()
    until(lambda: len(live_nodes()) == 3)
    nodes.lose(other)


def sampling(nodes: Nodes, folder: Path) -> None:
    nodes.begin("sampling", 2)
    recipe = pinned(tiny_recipe(), nodes.label)
    run = tiny_run(folder / "run", recipe)
    counter = RowCounter(run.candidates(0))
    work = partial(generate, recipe, run, engines(Faults(str(folder), hold_after=DRAWN)))
    report = during(work, lambda: counter.count() >= STORED, lambda: nodes.lose(home_of("SamplerActor")), folder)
    assert (report.rows, report.errors) == (ROWS, 0), report


def ledger(nodes: Nodes, folder: Path) -> None:
    """Everything that is not bound to the driver's node stands on the one that goes."""
    nodes.begin("ledger", 1)
    holder = fill_the_drivers_node(nodes)
    nodes.patch.setattr(stage, "start_ledger", unlucky(stage.start_ledger, nodes))
    recipe = pinned(tiny_recipe(), nodes.label)
    run = tiny_run(folder / "run", recipe)
    counter = RowCounter(run.candidates(0))
    work = partial(generate, recipe, run, engines(Faults(str(folder), hold_after=DRAWN)))
    report = during(work, lambda: counter.count() >= STORED, partial(swap_nodes, nodes), folder)
    assert (report.rows, report.errors) == (ROWS, 0), report
    ray.kill(holder)


def evaluation(nodes: Nodes, folder: Path) -> None:
    """The node of every host of an evaluation goes while the target answers."""
    nodes.begin("evaluation", 1)
    holder = fill_the_drivers_node(nodes)
    recipe = pinned(tiny_evaluation.tiny_recipe(), nodes.label)
    run = tiny_evaluation.tiny_run(folder / "run", recipe)
    faults = tiny_evaluation.Faults(str(folder), hold_after=8)
    work = partial(evaluate, recipe, run, engines=tiny_evaluation.engines(faults))
    report = during(work, lambda: len(faults.noted("base")) >= 8, partial(swap_nodes, nodes), folder)
    assert report.errors == 0, report
    undisturbed = tiny_evaluation.tiny_run(folder / "undisturbed", recipe)
    evaluate(recipe, undisturbed, engines=tiny_evaluation.engines(faults))
    assert attempts(run) == attempts(undisturbed)
    ray.kill(holder)


def attempts(run: RunDir) -> list[dict[str, Any]]:
    rows = read_table(run.evaluation("default")).sort_by("attempt_id").to_pylist()
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def drive_point(notes: str, job: Job) -> None:
    """Stands for all stages of a point: one that runs a Ray Data plan of its own."""
    with open(Path(notes) / "drives", "a") as stream:
        stream.write(f"{ray.get_runtime_context().get_node_id()}\n")
    run = open_run(job.root, job.recipe, resume=True)
    generate(job.recipe, tiny_run(run.root, job.recipe), engines(Faults(notes, hold_after=DRAWN)))


def share_nothing(job: Job) -> None:
    """Stands for what points share."""


def sweep(nodes: Nodes, folder: Path) -> None:
    """The driver of a point stands beside the sweep's own, and its engines on the node that goes."""
    nodes.begin("sweep", 1)
    holder = fill_the_drivers_node(nodes)
    recipe = pinned(tiny_recipe(), nodes.label)
    plan = Plan(recipe, {"seed": [recipe.seed]}, [Point("point", "the point", recipe)], SweepConfig())
    root = str(folder / "sweep")
    counter = RowCounter(RunDir(f"{root}/points/point").candidates(0))
    # The models of these runs are defined beside the tests: there is nothing to look up.
    nodes.patch.setattr(sweeping, "check_inputs", lambda recipe: None)
    point = partial(drive_point, str(folder))
    work = partial(sweeping.sweep, plan, root, resume=False, share=share_nothing, work=point)
    during(work, lambda: counter.count() >= STORED, partial(swap_nodes, nodes), folder)
    assert (folder / "drives").read_text().split() == [nodes.driver]
    ray.kill(holder)


def training(nodes: Nodes, folder: Path) -> None:
    nodes.begin("training", 2)
    save_tiny_chat_model(folder / "model")
    recipe = pinned(tiny_training_recipe(folder / "model"), nodes.label)
    run = ready_run(folder / "run", recipe)
    nodes.patch.setattr(driver, "train_worker", held_worker(folder, 12))
    work = partial(driver.train, recipe, run)
    report = during(work, lambda: updates_kept(recipe, run) >= 4, lambda: nodes.lose(home_of("RayTrainWorker")), folder)
    found = load_file(Path(report.adapter) / ADAPTER_WEIGHTS)
    expected = in_process(recipe, run, folder / "alone")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def held_look(notes: str) -> Callable[..., Any]:
    """`dat doctor`'s question to a node, whose answer waits until the drill lets it go."""
    look = doctoring._look

    def held(*asked: Any) -> Any:
        with open(Path(notes) / "asked", "a") as stream:
            stream.write(f"{this_node()}\n")
        await_release(Path(notes))
        return look(*asked)

    return held


def doctor(nodes: Nodes, folder: Path) -> None:
    """Every node is asked, and one goes before it has answered: it is named, the others' answers count, nothing is left."""
    nodes.begin("doctor", 2)
    asked, root = folder / "asked", folder / "run"
    nodes.patch.setattr(doctoring, "_look", held_look(str(folder)))
    # The others have no deadline to keep on a busy machine.
    nodes.patch.setattr(doctoring, "SECONDS_FOR_A_NODE", 600.0)
    installed = {"ray": ray.__version__}
    asked_of = [node for node in ray.nodes() if node["Alive"]]
    work = partial(doctoring.ask_every_node, asked_of, str(root), installed)
    going = min(live_nodes() - {nodes.driver})
    found = during(work, lambda: asked.exists() and len(asked.read_text().split()) == 3, lambda: nodes.lose(going), folder)
    by_name = {finding.name: finding for finding in found}
    assert not by_name["nodes"].ok
    assert by_name["nodes"].detail.startswith("1 of 3 do not answer"), by_name
    assert going[:6] in by_name["nodes"].detail
    assert by_name["versions on every node"].ok, by_name
    assert by_name["storage"].detail.endswith("is written and read by 2 nodes"), by_name
    assert not root.exists(), "the probe is gone, and the folder that was made for it"


DRILLS = {drill.__name__: drill for drill in (sampling, ledger, evaluation, sweep, training, doctor)}


def main() -> None:
    wait_for_slow_nodes()
    nodes = Nodes()
    for line in sys.stdin:
        kind, folder = line.rstrip("\n").split(" ", 1)
        DRILLS[kind](nodes, Path(folder))
        assert nodes.lost, "the node was never lost"
        assert len(live_nodes()) == 2
        nodes.end()
        print(PASSED, flush=True)
    nodes.close()


if __name__ == "__main__":
    # Ray tells of lost workers there, from a thread: in the middle of the line that the drill waits for.
    with own_stdout():
        main()
