"""Where the package's own helper actors and tasks run: each is bound to a node, so that no other node's loss ends it."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def on_node(node: str) -> dict[str, Any]:
    """Options of a Ray actor or task that runs on this node or not at all.

    Args:
        node: hexadecimal id of a node.
    """
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def beside_the_driver() -> dict[str, Any]:
    """Options of a helper that takes no CPU and runs on the node of the process that starts it.

    Left to itself Ray puts what asks for nothing on any node, and that node's loss ends it. The starting process owns the
    helper, so that on this node nothing is lost but what would be lost anyway. It is the right node wherever a driver
    runs: on a Ray of its own, on the head, as a job on a worker node, or inside a task that drives a run of its own. The
    driver of a Ray client is its proxy on the head.
    """
    return {"num_cpus": 0, **on_node(ray.get_runtime_context().get_node_id())}
