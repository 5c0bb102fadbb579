"""Asks, before anything starts, whether the cluster can hold what generation needs; otherwise it would wait for ever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import ray

from dat_ray.config.cluster import Pool
from dat_ray.config.schema import Recipe
from dat_ray.engines.pool_size import autoscaler_ceiling
from dat_ray.errors import DatError
from dat_ray.generation.autoscaler import ask_autoscaler

# The node label that Ray's autoscaler groups nodes by.
SUBCLUSTER_LABEL = "ray-subcluster"
# Beside the pools: one CPU for the tasks that read and write files, and one for the filter of a resumed run. The second
# is asked of the first run too, or a run could start that nobody can resume.
FILE_CPUS = 2.0


@dataclass(frozen=True)
class Node:
    """What one live node offers in all, used or not."""

    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)


def generation_pools(recipe: Recipe) -> dict[str, Pool]:
    """The pools that generation runs; those without a group of their own are in the sampler's.

    Ray Data has one label for its tasks, and puts it on every pool that names none: so files stay in the sampler's group.
    """
    cluster = recipe.cluster
    pools = {"sampler": cluster.sampler, "target": cluster.target, "judge": cluster.judge}
    pools |= {"encoder": cluster.encoder} if recipe.encoder is not None else {}
    group = cluster.sampler.subcluster
    return {role: pool if pool.subcluster else pool.model_copy(update={"subcluster": group}) for role, pool in pools.items()}


def files_group(pools: Mapping[str, Pool]) -> str | None:
    """The group whose nodes read and write the files of generation, of the stage's pools; None for any node."""
    return pools["sampler"].subcluster if "sampler" in pools else None


def check_cluster(pools: Mapping[str, Pool]) -> None:
    """Raises where this cluster, as it is or as its autoscaler can make it, does not hold the smallest pools.

    Raises:
        DatError: says what is asked and what is there.
    """
    try:
        check_capacity(pools, live_nodes(), autoscaler_ceiling())
    except DatError:
        # Ray's own autoscaler reports no ceiling: what nodes it could add shows when it is asked for one.
        if any(ask_autoscaler(pool, SUBCLUSTER_LABEL) == "never" for pool in pools.values()):
            raise


def check_capacity(pools: Mapping[str, Pool], nodes: Sequence[Node], ceiling: Mapping[str, float] | None) -> None:
    """Raises where the smallest pools and the file tasks do not fit.

    Args:
        pools: role -> pool.
        nodes: live nodes.
        ceiling: the most that an autoscaler may start, by resource; None where nothing will be added. Nodes that are
            yet to come are compared by their sum only: their labels are not known.

    Raises:
        DatError: says what is asked and what is there.
    """
    if ceiling is not None:
        _compare("anywhere", pools, FILE_CPUS, ceiling.get("CPU", 0.0), ceiling.get("GPU", 0.0), "the autoscaler may reach")
        return
    for subcluster in sorted({pool.subcluster for pool in pools.values() if pool.subcluster}):
        group = [node for node in nodes if node.labels.get(SUBCLUSTER_LABEL) == subcluster]
        pinned = {role: pool for role, pool in pools.items() if pool.subcluster == subcluster}
        if not group:
            raise DatError(
                f"the pools {', '.join(pinned)} want nodes labeled {SUBCLUSTER_LABEL}={subcluster}, and no live node is: "
                "label the nodes, or unset cluster.ROLE.subcluster"
            )
        files = FILE_CPUS if subcluster == files_group(pools) else 0.0
        _compare_nodes(f"on {SUBCLUSTER_LABEL}={subcluster}", pinned, files, group)
    _compare_nodes("in all", pools, FILE_CPUS, nodes)


def _compare_nodes(where: str, pools: Mapping[str, Pool], extra_cpus: float, nodes: Sequence[Node]) -> None:
    _compare(where, pools, extra_cpus, sum(n.cpus for n in nodes), sum(n.gpus for n in nodes), "there are")
    for role, pool in pools.items():
        if not any(node.cpus >= pool.num_cpus and node.gpus >= pool.num_gpus for node in nodes):
            raise DatError(
                f"one {role} actor asks for {pool.num_cpus:g} CPUs and {pool.num_gpus:g} GPUs on one node, and no node {where} "
                f"has them: lower cluster.{role}"
            )


def _compare(where: str, pools: Mapping[str, Pool], extra_cpus: float, cpus: float, gpus: float, verb: str) -> None:
    asked_cpus = sum(pool.min_actors * pool.num_cpus for pool in pools.values()) + extra_cpus
    asked_gpus = sum(pool.min_actors * pool.num_gpus for pool in pools.values())
    if asked_cpus <= cpus + 1e-6 and asked_gpus <= gpus + 1e-6:
        return
    parts = ", ".join(
        f"{role} {pool.min_actors} x {pool.num_cpus:g} CPU" + (f" + {pool.num_gpus:g} GPU" if pool.num_gpus else "")
        for role, pool in pools.items()
    )
    files = f", file tasks {extra_cpus:g} CPU" if extra_cpus else ""
    raise DatError(
        f"generation asks for {asked_cpus:g} CPUs and {asked_gpus:g} GPUs {where} ({parts}{files}), "
        f"{verb} {cpus:g} and {gpus:g}: lower the pools in `cluster`, "
        "raise cluster.local_cpus (logical, may exceed the cores), or add nodes"
    )


def live_nodes() -> list[Node]:
    """The nodes of the cluster that this process is connected to."""
    return [
        Node(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0), node.get("Labels", {}))
        for node in ray.nodes()
        if node["Alive"]
    ]
