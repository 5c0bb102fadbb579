"""Reads and checks a file that describes a cluster: a Ray cluster YAML, or a KubeRay RayCluster or RayJob manifest.

Offline: neither a cloud nor a Kubernetes cluster is asked. Ray's own schema comes first; then what it lets through and a
launch would stumble over: region, zone, project, minima above maxima, a head that takes work, groups without a label,
another version of Ray in the image, no token, a dashboard that listens to the world.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

from dat_ray.config.yaml_text import load_yaml
from dat_ray.errors import InputError
from dat_ray.generation.capacity import SUBCLUSTER_LABEL
from dat_ray.ops import kuberay
from dat_ray.ops.needs import Group

PLACEHOLDER = "EDIT_ME"
SUBCLUSTERS = ("generation", "training")
_COUNT = {"type": "integer", "minimum": 0}
_TEXTS = {"type": ["array", "null"], "items": {"type": "string"}}
_NODE_TYPE = {
    "type": "object",
    "properties": {
        "min_workers": _COUNT,
        "max_workers": _COUNT,
        "resources": {"type": ["object", "null"], "additionalProperties": {"type": "number"}},
        "labels": {"type": ["object", "null"], "additionalProperties": {"type": "string"}},
    },
}
# Kinds of the values that are read here. Ray's own schema comes after it fills in defaults, which breaks off on most of them.
_KINDS = {
    "type": "object",
    "properties": {
        "provider": {"type": "object", "properties": {"worker_ips": {"type": ["array", "null"]}}},
        "available_node_types": {"type": ["object", "null"], "additionalProperties": _NODE_TYPE},
        "head_node_type": {"type": "string"},
        "min_workers": _COUNT,
        "max_workers": _COUNT,
        "docker": {"type": ["object", "null"], "properties": {"image": {"type": ["string", "null"]}, "run_options": _TEXTS}},
        "head_start_ray_commands": _TEXTS,
        "worker_start_ray_commands": _TEXTS,
    },
}
_RAY_IN_TAG = re.compile(r"ray(\d+\.\d+\.\d+)")


@dataclass(frozen=True)
class ClusterFile:
    """A cluster as its file describes it.

    Attributes:
        path: of the file.
        kind: `aws`, `gcp`, `local` or another provider of Ray's, `RayCluster` or `RayJob`.
        groups: worker groups, without the head; empty where the file names machines instead of groups, and where a
            schema objects.
        problems: what is wrong, one line each: the field, then what to do.
        edits: fields that still hold a placeholder of the examples.
    """

    path: str
    kind: str
    groups: tuple[Group, ...]
    problems: tuple[str, ...]
    edits: tuple[str, ...]


def read_cluster_file(path: str) -> ClusterFile:
    """Reads and checks a cluster file.

    Raises:
        InputError: it cannot be read, or is neither kind of file.
    """
    try:
        tree = load_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError("--cluster", path, f"not a readable YAML file ({reason}): give a file as those in cluster/") from None
    if not isinstance(tree, dict):
        raise InputError("--cluster", path, "holds no mapping: give a Ray cluster YAML or a KubeRay manifest")
    edits = tuple(where for where, value in _leaves(tree) if isinstance(value, str) and PLACEHOLDER in value)
    if "apiVersion" in tree:
        kind = str(tree.get("kind"))
        spec, problems = kuberay.cluster_spec(tree)
        if spec is None:
            return ClusterFile(path, kind, (), tuple(problems), edits)
        groups = tuple(_kuberay_groups(spec))
        problems += [*_check_groups(groups), *kuberay.check(spec), *_check_images(kuberay.images(spec))]
        return ClusterFile(path, kind, groups, tuple(problems), edits)
    if "provider" not in tree:
        raise InputError(
            "--cluster", path, "has neither `provider` nor `apiVersion`: give a Ray cluster YAML or a KubeRay manifest"
        )
    unlike = kuberay.objections(_KINDS, tree)
    if unlike:
        return ClusterFile(path, "Ray cluster", (), tuple(unlike), edits)
    kind = str(tree["provider"].get("type"))
    groups = () if kind == "local" else tuple(_ray_groups(tree))
    refused = _ray_schema(tree)
    problems = [*refused, *_check_provider(tree["provider"]), *_check_head(tree), *_check_security(tree)]
    if kind == "local":
        problems += _check_own_machines(tree)
    else:
        problems += [*_check_groups(groups), *_check_maxima(tree, groups)]
    image = (tree.get("docker") or {}).get("image")
    problems += _check_images([image] if image else [])
    return ClusterFile(path, kind, () if refused else groups, tuple(problems), edits)


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}{key}.")
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _leaves(value, f"{prefix}{index}.")
    else:
        yield prefix[:-1], tree


def _ray_schema(tree: dict[str, Any]) -> list[str]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler._private.util").setLevel(logging.WARNING)
    try:
        # It prints what it fills in, and leaves the process on some mistakes.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            validate_config(prepare_config(tree))
    except (Exception, SystemExit) as error:
        lines = [line for line in str(getattr(error, "message", error)).splitlines() if line.strip()]
        where = ".".join(str(part) for part in getattr(error, "absolute_path", ()))
        return [f"{where or 'file'}: {lines[0] if lines else type(error).__name__}; Ray does not accept it"]
    return []


def _check_provider(provider: dict[str, Any]) -> list[str]:
    needed = {"aws": ("region",), "gcp": ("region", "availability_zone", "project_id"), "local": ("head_ip", "worker_ips")}
    found = [
        f"provider.{name}: missing; Ray would fall back on a default of its own: write it out"
        for name in needed.get(str(provider.get("type")), ())
        if not provider.get(name)
    ]
    region = str(provider.get("region") or "")
    for zone in str(provider.get("availability_zone") or "").split(","):
        if region and zone.strip() and not zone.strip().startswith(region):
            found.append(f"provider.availability_zone: {zone.strip()!r} is not a zone of region {region!r}: correct one of them")
    return found


def _ray_groups(tree: dict[str, Any]) -> Iterator[Group]:
    for name, kind in (tree.get("available_node_types") or {}).items():
        if name != tree.get("head_node_type"):
            resources, least = kind.get("resources") or {}, int(kind.get("min_workers", 0))
            cpus, gpus = resources.get("CPU"), resources.get("GPU", 0 if resources else None)
            most = int(kind.get("max_workers", tree.get("max_workers", least)))
            yield Group(name, cpus, gpus, least, most, kind.get("labels") or {})


def _kuberay_groups(spec: dict[str, Any]) -> Iterator[Group]:
    for group in spec.get("workerGroupSpecs") or []:
        cpus, gpus = kuberay.node_size(group)
        least, most = int(group.get("minReplicas", 0)), int(group.get("maxReplicas", 0))
        yield Group(str(group.get("groupName")), cpus, gpus, least, most, group.get("labels") or {})


def _check_groups(groups: tuple[Group, ...]) -> list[str]:
    found = []
    for group in groups:
        if group.least > group.most:
            found.append(
                f"{group.name}: its minimum {group.least} exceeds its maximum {group.most}: lower one or raise the other"
            )
        if group.most < 1:
            found.append(
                f"{group.name}: its maximum is {group.most}, so that no node ever starts: raise it or leave the group out"
            )
        if group.labels.get(SUBCLUSTER_LABEL) not in SUBCLUSTERS:
            found.append(f"{group.name}.labels.{SUBCLUSTER_LABEL}: missing or unknown: write {' or '.join(SUBCLUSTERS)}")
    have = {group.labels.get(SUBCLUSTER_LABEL) for group in groups}
    found += [f"no group is labeled {SUBCLUSTER_LABEL}={name}: add one" for name in SUBCLUSTERS if name not in have]
    return found


def _check_maxima(tree: dict[str, Any], groups: tuple[Group, ...]) -> list[str]:
    found = []
    total, ceiling = sum(group.most for group in groups), tree.get("max_workers")
    if isinstance(ceiling, int) and ceiling < total:
        found.append(f"max_workers: {ceiling} is less than the groups' maxima together ({total}): a group would wait; raise it")
    for group in groups:
        if "idle_timeout_s" not in tree["available_node_types"][group.name]:
            found.append(f"{group.name}.idle_timeout_s: missing: say after how many idle seconds a node ends")
    if "RAY_enable_autoscaler_v2=1" not in " ".join(tree.get("head_start_ray_commands") or []):
        found.append(
            "head_start_ray_commands: without RAY_enable_autoscaler_v2=1 labels, priorities and idle times are not looked at"
        )
    return found


def _check_head(tree: dict[str, Any]) -> list[str]:
    found = []
    head = (tree.get("available_node_types") or {}).get(tree.get("head_node_type")) or {}
    if head and (head.get("resources") or {}).get("CPU") != 0:
        found.append(f"{tree.get('head_node_type')}.resources.CPU: write 0, or actors run beside Ray's own processes")
    if "--num-cpus=0" not in " ".join(tree.get("head_start_ray_commands") or []):
        found.append("head_start_ray_commands: start the head with --num-cpus=0, or actors run beside Ray's own processes")
    return found


def _check_own_machines(tree: dict[str, Any]) -> list[str]:
    found = []
    machines = len(tree["provider"].get("worker_ips") or [])
    least, most = int(tree.get("min_workers", machines)), int(tree.get("max_workers", machines))
    if least > most:
        found.append(f"min_workers: {least} exceeds max_workers {most}: lower one or raise the other")
    if least < machines:
        # Ray knows neither resources nor labels of this kind of node, so that no request fits it.
        found.append(
            f"min_workers: {least}, but provider.worker_ips has {machines} addresses: Ray starts no machine above the minimum "
            "here: leave min_workers out"
        )
    if most > machines:
        found.append(f"max_workers: {most}, but provider.worker_ips has {machines} addresses: add some or lower it")
    if f"{SUBCLUSTER_LABEL}=" not in " ".join(tree.get("worker_start_ray_commands") or []):
        found.append(f'worker_start_ray_commands: no label: add --labels="{SUBCLUSTER_LABEL}=..." to `ray start`')
    return found


def _check_security(tree: dict[str, Any]) -> list[str]:
    started = " ".join([*(tree.get("head_start_ray_commands") or []), *((tree.get("docker") or {}).get("run_options") or [])])
    found = []
    if "RAY_AUTH_MODE=token" not in started:
        found.append("docker.run_options: RAY_AUTH_MODE=token is missing: whoever reaches a Ray port could run code")
    host = re.search(r"--dashboard-host[= ](\S+)", started)
    if host and host[1] not in ("127.0.0.1", "localhost"):
        found.append(f"head_start_ray_commands: the dashboard listens on {host[1]}: use 127.0.0.1 and `ray dashboard`")
    return found


def _check_images(images: list[str]) -> list[str]:
    if not images:
        return ["image: none is given: name the one that cluster/Dockerfile builds"]
    found = []
    for image in dict.fromkeys(images):
        tagged = _RAY_IN_TAG.search(image.rsplit(":", 1)[-1])
        if tagged is None:
            found.append(f"image {image}: its tag names no version of Ray: tag it ...-ray{ray.__version__}...")
        elif tagged[1] != ray.__version__:
            found.append(
                f"image {image}: has Ray {tagged[1]}, this machine {ray.__version__}: a cluster needs one version everywhere"
            )
    return found
