"""How many actors pools may have beside one another, going by the cluster's totals."""

from __future__ import annotations

from collections.abc import Mapping

import ray

from dat_ray.config.cluster import Pool


def autoscaler_ceiling() -> Mapping[str, float] | None:
    """The most that the cluster's autoscaler may reach, or None without one. Ray Train asks Ray the same way."""
    most: Mapping[str, float] | None = ray._private.state.state.get_max_resources_from_cluster_config()
    return most


def smallest(pool: Pool) -> Pool:
    """A pool that stays at its `min_actors`."""
    return pool.model_copy(update={"max_actors": pool.min_actors})


def fits(*pools: Pool) -> bool:
    """Whether the cluster has room for these pools at their largest at the same time."""
    total = _totals()
    cpus = sum(pool.num_cpus * pool.max_actors for pool in pools)
    gpus = sum(pool.num_gpus * pool.max_actors for pool in pools)
    return cpus <= total.get("CPU", 0.0) and gpus <= total.get("GPU", 0.0)


def beside(pool: Pool, *others: Pool) -> Pool:
    """The pool, not growing further than leaves room for the smallest size of the others, which may start later."""
    least = [smallest(other) for other in others]
    size = pool.max_actors
    while size > pool.min_actors and not fits(pool.model_copy(update={"max_actors": size}), *least):
        size -= 1
    return pool.model_copy(update={"max_actors": size})


def _totals() -> Mapping[str, float]:
    """Of the cluster as it can become: nodes that are yet to come count where their number is known."""
    return autoscaler_ceiling() or ray.cluster_resources()
