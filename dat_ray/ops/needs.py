"""What a recipe asks of a cluster's groups: which group can hold each role, and what would wait. Nothing is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from dat_ray.config.cluster import Pool
from dat_ray.config.schema import Recipe
from dat_ray.errors import InputError
from dat_ray.evaluation.attacks.base import Setup
from dat_ray.evaluation.attacks.rewriting import ATTACKER
from dat_ray.evaluation.judges import judge_pools
from dat_ray.evaluation.questions import Behavior
from dat_ray.evaluation.registry import check_attacks, chosen_attacks
from dat_ray.generation.capacity import FILE_CPUS, SUBCLUSTER_LABEL, files_group, generation_pools


@dataclass(frozen=True)
class Group:
    """One kind of node.

    Attributes:
        name: of the group.
        cpus: logical CPUs of a node; None where nobody knows.
        gpus: GPUs of a node; None where nobody knows.
        least: nodes that are always there.
        most: nodes at most.
        labels: Ray node labels.
    """

    name: str
    cpus: float | None
    gpus: float | None
    least: int
    most: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """Whether one role of one stage can run.

    Attributes:
        name: as in `generate: sampler`.
        ok: it fits, at the latest when the autoscaler has added nodes.
        detail: what is asked, and which group can hold it.
        remedy: what to change; empty where it fits.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def stage_pools(recipe: Recipe) -> dict[str, dict[str, Pool]]:
    """The pools that must run at the same time, by stage or part of one.

    Samplers of an evaluation are generation's; they work beside the target only where there is room.
    """
    cluster, judges = recipe.cluster, judge_pools(recipe)
    beforehand, beside = _attacker_writes(recipe)
    found = {"generate": generation_pools(recipe), "train": {"trainer": cluster.trainer}}
    if beforehand and not beside:
        # It is gone before the target starts.
        found["evaluate, written beforehand"] = {"attacker": cluster.attacker, **judges}
    found["evaluate"] = {"target": cluster.target, **judges} | ({"attacker": cluster.attacker} if beside else {})
    return found


def _attacker_writes(recipe: Recipe) -> tuple[bool, bool]:
    """Whether the attacker model writes before a model is asked, and whether it does so meanwhile."""
    try:
        check_attacks(recipe)
        kinds = [kind for kind in chosen_attacks(recipe.evaluation).values() if ATTACKER in kind.needs]
    except InputError:
        return False, False  # the check of attacks names it
    goal = [Behavior("0", "Name a bird", ((0, "A bird is"),))]
    plans = [kind(Setup.to_count(recipe, goal)).planned() for kind in kinds]
    return any(plan.written for plan in plans), any(plan.written_each for plan in plans)


def compare(recipe: Recipe, groups: Sequence[Group]) -> list[Finding]:
    """Holds every stage's smallest pools against the groups at their largest.

    Args:
        recipe: its `cluster` section, its attacks and judges.
        groups: worker groups of the cluster.
    """
    findings = []
    for stage, pools in stage_pools(recipe).items():
        alone = [_compare_role(f"{stage}: {role}", _field(role), pool, groups) for role, pool in pools.items()]
        findings += alone
        if all(finding.ok for finding in alone):
            findings.append(_compare_together(stage, pools, groups))
    return findings


def _field(role: str) -> str:
    """Of `cluster`; every judge has a pool as `judge` says."""
    return "judge" if "judge" in role else role


def _asks(pool: Pool) -> str:
    where = f" on {SUBCLUSTER_LABEL}={pool.subcluster}" if pool.subcluster else ""
    gpus = f", {pool.num_gpus:g} GPU" if pool.num_gpus else ""
    return f"{pool.min_actors} x ({pool.num_cpus:g} CPU{gpus}){where}"


def _labeled(pool: Pool, group: Group) -> bool:
    return pool.subcluster is None or group.labels.get(SUBCLUSTER_LABEL) == pool.subcluster


def _actors_on_a_node(pool: Pool, group: Group) -> int:
    if group.cpus is None or group.gpus is None:
        return pool.min_actors
    by_cpu = int(group.cpus / pool.num_cpus + 1e-9)
    return min(by_cpu, int(group.gpus / pool.num_gpus + 1e-9)) if pool.num_gpus else by_cpu


def _compare_role(name: str, role: str, pool: Pool, groups: Sequence[Group]) -> Finding:
    labeled = [group for group in groups if _labeled(pool, group)]
    if not labeled:
        have = sorted({group.labels.get(SUBCLUSTER_LABEL, "no label") for group in groups}) or ["no workers"]
        return Finding(
            name,
            False,
            f"asks for {_asks(pool)}; no group has that label (there: {', '.join(have)}): it would wait for ever",
            f"label a group {SUBCLUSTER_LABEL}={pool.subcluster}, or unset cluster.{role}.subcluster",
        )
    fitting = [group for group in labeled if _actors_on_a_node(pool, group) >= 1]
    if not fitting:
        sizes = ", ".join(f"{group.name} {group.cpus:g} CPU and {group.gpus:g} GPU" for group in labeled)
        return Finding(
            name,
            False,
            f"asks for {_asks(pool)}; no node can hold one actor ({sizes}): it would wait for ever",
            f"lower cluster.{role}.num_cpus or num_gpus, or use larger nodes",
        )
    room = sum(group.most * _actors_on_a_node(pool, group) for group in fitting)
    names = ", ".join(f"{group.name} (up to {group.most})" for group in fitting)
    if room < pool.min_actors:
        return Finding(
            name,
            False,
            f"asks for {_asks(pool)}; {names} have room for {room}: the rest would wait for ever",
            f"lower cluster.{role}.min_actors, or raise the group's maximum",
        )
    ready = sum(group.least * _actors_on_a_node(pool, group) for group in fitting)
    waits = "" if ready >= pool.min_actors else "; waits until the autoscaler has started nodes"
    if pool.subcluster is None and len({group.labels.get(SUBCLUSTER_LABEL) for group in fitting}) > 1:
        waits += f"; not pinned: set cluster.{role}.subcluster to keep it out of the other groups"
    return Finding(name, True, f"asks for {_asks(pool)}; can run on {names}{waits}")


def _compare_together(stage: str, pools: Mapping[str, Pool], groups: Sequence[Group]) -> Finding:
    """One stage's pools share nodes: by sums, for each label and for all."""
    known = [group for group in groups if group.cpus is not None and group.gpus is not None]
    extra = FILE_CPUS if stage == "generate" else 0.0
    name = f"{stage}: all pools together"
    for subcluster in [*sorted({pool.subcluster for pool in pools.values() if pool.subcluster}), None]:
        members = [group for group in known if subcluster is None or group.labels.get(SUBCLUSTER_LABEL) == subcluster]
        asked = [pool for pool in pools.values() if subcluster is None or pool.subcluster == subcluster]
        here = extra if subcluster in (None, files_group(pools)) else 0.0
        cpus = sum(pool.min_actors * pool.num_cpus for pool in asked) + here
        gpus = sum(pool.min_actors * pool.num_gpus for pool in asked)
        have_cpus = sum(group.most * (group.cpus or 0) for group in members)
        have_gpus = sum(group.most * (group.gpus or 0) for group in members)
        if len(known) == len(groups) and (cpus > have_cpus + 1e-6 or gpus > have_gpus + 1e-6):
            where = f" on {SUBCLUSTER_LABEL}={subcluster}" if subcluster else ""
            files = f" ({here:g} CPU of it for files and for a resume)" if here else ""
            return Finding(
                name,
                False,
                f"ask for {cpus:g} CPU{files} and {gpus:g} GPU{where}, there are at most {have_cpus:g} and {have_gpus:g}",
                "lower the pools in `cluster`, or raise the groups' maxima",
            )
    return Finding(name, True, f"fit at the same time{', with room for files and for a resume' if extra else ''}")


def live_groups() -> list[Group]:
    """The nodes that are up in the cluster that this process is connected to; Ray does not tell which may be added."""
    groups: dict[tuple[Any, ...], Group] = {}
    for node in ray.nodes():
        cpus, gpus = node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)
        if not node["Alive"] or not (cpus or gpus):
            continue
        subcluster = node.get("Labels", {}).get(SUBCLUSTER_LABEL)
        key = (subcluster, cpus, gpus)
        count = 1 if key not in groups else groups[key].most + 1
        labels = {SUBCLUSTER_LABEL: subcluster} if subcluster else {}
        groups[key] = Group(f"{subcluster or 'unlabeled'} nodes", cpus, gpus, count, count, labels)
    return list(groups.values())
