"""The parts of KubeRay's v1 manifests that this project uses, and a check of them that needs no Kubernetes.

The API server prunes a field that it does not know without a word, so that a typo loses a setting: hence a closed list
of fields. Source: the CRD reference of KubeRay 1.7.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jsonschema
import ray

_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_COUNT = {"type": "integer", "minimum": 0}
_SECONDS = {"type": "integer", "minimum": 1}
_AMOUNTS = {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
_LIMITS = {"type": "object", "properties": {"limits": _AMOUNTS, "requests": _AMOUNTS}}
# CPUs and GPUs as Kubernetes writes them: a number, or one of thousandths.
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(m?)")
_POD = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "required": ["containers"],
            "properties": {
                "containers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["name", "image", "resources"],
                        "properties": {"image": {"type": "string"}, "resources": _LIMITS},
                    },
                }
            },
        }
    },
}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


_HEAD = _object(
    ["rayStartParams", "template"],
    template=_POD,
    rayStartParams=_STRINGS,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    enableIngress={"type": "boolean"},
    headService={"type": "object"},
    resources=_STRINGS,
    labels=_STRINGS,
)
_GROUP = _object(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    idleTimeoutSeconds=_SECONDS,
    priority={"type": "integer"},
    numOfHosts={"type": "integer", "minimum": 1},
    rayStartParams=_STRINGS,
    resources=_STRINGS,
    labels=_STRINGS,
    template=_POD,
    scaleStrategy={"type": "object"},
    suspend={"type": "boolean"},
)
CLUSTER = _object(
    ["rayVersion", "headGroupSpec", "workerGroupSpecs"],
    rayVersion={"type": "string"},
    authOptions=_object(
        [],
        mode={"enum": ["token", "disabled"]},
        secretName={"type": "string"},
        enableK8sTokenAuth={"type": "boolean"},
    ),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=_object(
        [],
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=_SECONDS,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        resources={"type": "object"},
        image={"type": "string"},
        imagePullPolicy={"type": "string"},
        securityContext={"type": "object"},
        env={"type": "array"},
        envFrom={"type": "array"},
        volumeMounts={"type": "array"},
    ),
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "minItems": 1, "items": _GROUP},
    headServiceAnnotations=_STRINGS,
    gcsFaultToleranceOptions={"type": "object"},
    networkPolicy={"type": "object"},
    tlsOptions=_object([], enabled={"type": "boolean"}),
    upgradeStrategy={"type": "object"},
    suspend={"type": "boolean"},
    managedBy={"type": "string"},
)
JOB = _object(
    ["entrypoint", "rayClusterSpec"],
    entrypoint={"type": "string", "minLength": 1},
    rayClusterSpec=CLUSTER,
    metadata=_STRINGS,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode"]},
    preRunningDeadlineSeconds=_SECONDS,
    activeDeadlineSeconds=_SECONDS,
    backoffLimit=_COUNT,
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=_COUNT,
    deletionStrategy=_object([], deletionRules={"type": "array", "minItems": 1}),
    runtimeEnvYAML={"type": "string"},
    submitterPodTemplate={"type": "object"},
    submitterConfig={"type": "object"},
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    entrypointResources={"type": "string"},
    jobId={"type": "string"},
    managedBy={"type": "string"},
    suspend={"type": "boolean"},
)
_METADATA = {"type": "object", "properties": {"name": {"type": "string"}}}
_SPECS = {"RayCluster": CLUSTER, "RayJob": JOB}


def objections(schema: Mapping[str, Any], tree: Any, where: str = "") -> list[str]:
    """What a schema objects to, one line each: the field, then why.

    Args:
        schema: JSON Schema.
        tree: what is held against it.
        where: the field that holds the tree.
    """
    found = sorted(jsonschema.Draft202012Validator(schema).iter_errors(tree), key=lambda error: list(map(str, error.path)))
    return [
        f"{'.'.join([*([where] if where else []), *map(str, error.path)]) or 'file'}: {error.message[:160]}" for error in found
    ]


def cluster_spec(manifest: dict[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """The RayCluster spec inside a manifest, None where its schema objects to something, and what is wrong."""
    kind = str(manifest.get("kind"))
    if manifest.get("apiVersion") != "ray.io/v1" or kind not in _SPECS:
        which = f"{manifest.get('apiVersion')} {kind}"
        return None, [f"kind: {which}: write apiVersion ray.io/v1 and kind RayCluster or RayJob"]
    metadata = manifest.get("metadata") or {}
    problems = objections(_METADATA, metadata, "metadata") + objections(_SPECS[kind], manifest.get("spec") or {}, "spec")
    if problems:
        return None, problems
    spec = manifest.get("spec") or {}
    if not metadata.get("name"):
        problems.append("metadata.name: missing: give the cluster a name")
    if kind == "RayCluster":
        return spec, problems
    if "preRunningDeadlineSeconds" not in spec:
        problems.append("spec.preRunningDeadlineSeconds: missing: a job that no node can take would wait for ever")
    if spec.get("shutdownAfterJobFinishes") and spec.get("deletionStrategy"):
        problems.append("spec.deletionStrategy: excludes shutdownAfterJobFinishes: keep one of them")
    if not spec.get("shutdownAfterJobFinishes") and not spec.get("deletionStrategy"):
        problems.append("spec.shutdownAfterJobFinishes: missing: the cluster would stay, and cost, after the job")
    return spec.get("rayClusterSpec") or {}, problems


def check(spec: dict[str, Any]) -> list[str]:
    """What a RayCluster spec lacks that its schema allows to lack."""
    found = []
    if spec.get("rayVersion") != ray.__version__:
        found.append(f"rayVersion: {spec.get('rayVersion')}, this machine has {ray.__version__}: write the version of the image")
    if (spec.get("authOptions") or {}).get("mode") != "token":
        found.append("authOptions.mode: write token: whoever reaches a Ray port could run code")
    if not spec.get("enableInTreeAutoscaling"):
        found.append("enableInTreeAutoscaling: write true, or no group grows or shrinks")
    head = spec.get("headGroupSpec") or {}
    if (head.get("rayStartParams") or {}).get("num-cpus") != "0":
        found.append('headGroupSpec.rayStartParams.num-cpus: write "0", or actors run beside Ray\'s own processes')
    if head.get("serviceType", "ClusterIP") != "ClusterIP":
        found.append(f"headGroupSpec.serviceType: {head['serviceType']} opens the dashboard to others: write ClusterIP")
    for group in spec.get("workerGroupSpecs") or []:
        name = group.get("groupName")
        if "idleTimeoutSeconds" not in group:
            found.append(f"{name}.idleTimeoutSeconds: missing: say after how many idle seconds a pod ends")
        if not group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 0):
            found.append(f"{name}.replicas: {group.get('replicas', 0)} is not between minReplicas and maxReplicas")
        for unit, amount in _amounts(group).items():
            if amount is not None and _number(amount) is None:
                found.append(f"{name}: {unit} {str(amount)[:40]!r} is no number of them: write one, as in 8 or 500m")
    return found


def images(spec: dict[str, Any]) -> list[str]:
    """Images of the Ray containers, the head's first."""
    pods = [spec.get("headGroupSpec") or {}, *(spec.get("workerGroupSpecs") or [])]
    return [str(container["image"]) for pod in pods if (container := _ray_container(pod)).get("image")]


def node_size(group: dict[str, Any]) -> tuple[float | None, float | None]:
    """Logical CPUs and GPUs of one pod, as Ray will count them; None where nobody knows."""
    cpus, gpus = _amounts(group).values()
    return _number(cpus), _number(gpus)


def _amounts(group: dict[str, Any]) -> dict[str, Any]:
    """What a pod's CPUs and GPUs are written as."""
    limits = (_ray_container(group).get("resources") or {}).get("limits") or {}
    params, own = group.get("rayStartParams") or {}, group.get("resources") or {}
    return {
        "CPUs": own.get("CPU", params.get("num-cpus", limits.get("cpu"))),
        "GPUs": own.get("GPU", params.get("num-gpus", limits.get("nvidia.com/gpu", 0))),
    }


def _ray_container(group: dict[str, Any]) -> dict[str, Any]:
    # In KubeRay the Ray container is the first one.
    containers = ((group.get("template") or {}).get("spec") or {}).get("containers") or [{}]
    container: dict[str, Any] = containers[0]
    return container


def _number(quantity: Any) -> float | None:
    """A quantity as a number; None where there is none, or it is none."""
    parts = _QUANTITY.fullmatch(str(quantity))
    return None if parts is None else float(parts[1]) / (1000 if parts[2] else 1)
