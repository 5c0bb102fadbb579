"""Asks Ray's autoscaler whether it would start a node for a pool. It does not tell which groups it has, only what it does.

A task that asks for what one actor asks for is put to the cluster. Either it runs, or the autoscaler launches a node for
it, or it calls the request infeasible. The node is one that the pool is about to need.
"""

from __future__ import annotations

import time
from typing import Any, Literal

import ray
from ray.core.generated import autoscaler_pb2

from dat_ray.config.cluster import Pool

Availability = Literal["ready", "coming", "never"]
SECONDS_BETWEEN_LOOKS = 0.5
# An autoscaler looks at the demand every five seconds. Without one nothing ever launches.
SECONDS_TO_ANSWER = 20.0


def ask_autoscaler(pool: Pool, label: str, seconds: float = SECONDS_TO_ANSWER) -> Availability:
    """Whether a node that can hold one actor of the pool is there, is coming, or never comes.

    Args:
        pool: its size, and the group that it is pinned to.
        label: the node label of groups.
        seconds: to wait for an answer; past them it is "never".
    """
    if ray._private.worker.global_worker.node.is_head():
        return "never"  # a Ray that this process started for itself has no autoscaler
    options: dict[str, Any] = {"num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus}
    if pool.subcluster:
        options["label_selector"] = {label: pool.subcluster}
    task: Any = ray.remote(**options)(_nothing)
    probe = task.remote()  # tried again by Ray where the node that took it is lost
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            done, _ = ray.wait([probe], timeout=SECONDS_BETWEEN_LOOKS)
            if done:
                return "ready"
            state = _state()
            if state.pending_instance_requests or state.pending_instances:
                return "coming"
            if any(_is_for(request, pool, label) for request in state.infeasible_resource_requests):
                return "never"
        return "never"
    finally:
        ray.cancel(probe, force=True)


def _nothing() -> None:
    """Runs where the pool's actors would."""


def _state() -> Any:
    client = ray._private.worker.global_worker.gcs_client
    reply = autoscaler_pb2.GetClusterStatusReply()
    reply.ParseFromString(client.get_cluster_status(timeout_s=10))
    return reply.autoscaling_state


def _is_for(request: Any, pool: Pool, label: str) -> bool:
    """Whether an infeasible request is this probe's: its label, or its size where it is not pinned."""
    wanted = {
        value
        for selector in request.label_selectors
        for constraint in selector.label_constraints
        if constraint.label_key == label
        for value in constraint.label_values
    }
    if pool.subcluster:
        return wanted == {pool.subcluster}
    return not wanted and dict(request.resources_bundle).get("CPU", 0.0) == pool.num_cpus
