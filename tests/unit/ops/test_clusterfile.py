"""The cluster files are checked offline, and each mistake that a launch would stumble over is named."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

import dat_ray
from dat_ray.errors import InputError
from dat_ray.ops.clusterfile import ClusterFile, read_cluster_file

FOLDER = Path(__file__).parents[3] / "cluster"
FILES = ("aws.yaml", "gcp.yaml", "on-premise.yaml", "kuberay/raycluster.yaml", "kuberay/rayjob.yaml")


def changed(tmp_path: Path, name: str, *path: Any, value: Any = None, drop: bool = False) -> ClusterFile:
    """The shipped file with one field changed or left out."""
    tree = copy.deepcopy(yaml.safe_load((FOLDER / name).read_text()))
    node = tree
    for key in path[:-1]:
        node = node[key]
    if drop:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    target = tmp_path / "cluster.yaml"
    target.write_text(yaml.safe_dump(tree))
    return read_cluster_file(str(target))


@pytest.mark.parametrize("name", FILES)
def test_the_shipped_files_are_sound_but_for_what_a_user_must_edit(name: str) -> None:
    found = read_cluster_file(str(FOLDER / name))
    assert found.problems == ()
    assert found.edits, "an example names what to edit"


@pytest.mark.parametrize("name", FILES)
def test_each_file_says_what_to_edit_and_what_it_costs(name: str) -> None:
    comments = "".join(line for line in (FOLDER / name).read_text().splitlines(True) if line.startswith("#"))
    assert "# EDIT:" in comments
    assert "# COST" in comments
    assert "look up" in comments.lower() or name == "on-premise.yaml"


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "kuberay/raycluster.yaml", "kuberay/rayjob.yaml"])
def test_generation_is_spot_first_and_both_groups_shrink_to_nothing(name: str) -> None:
    groups = {group.name: group for group in read_cluster_file(str(FOLDER / name)).groups}
    assert {g.labels["ray-subcluster"] for g in groups.values()} == {"generation", "training"}
    assert all(group.least == 0 < group.most for group in groups.values())
    tree = yaml.safe_load((FOLDER / name).read_text())
    if "available_node_types" in tree:
        priority = {group: tree["available_node_types"][group]["priority"] for group in groups}
        assert priority["generation-spot"] > priority["generation-on-demand"]


@pytest.mark.parametrize(
    ("name", "path", "value", "words"),
    [
        ("aws.yaml", ("provider", "region"), None, "provider.region: missing"),
        ("aws.yaml", ("provider", "availability_zone"), "eu-west-1a", "'eu-west-1a' is not a zone of region 'us-east-1'"),
        ("gcp.yaml", ("provider", "availability_zone"), None, "provider.availability_zone: missing"),
        ("gcp.yaml", ("provider", "project_id"), None, "provider.project_id: missing"),
        ("aws.yaml", ("available_node_types", "training", "min_workers"), 3, "training: its minimum 3 exceeds its maximum 2"),
        ("aws.yaml", ("available_node_types", "training", "labels"), {}, "training.labels.ray-subcluster: missing"),
        ("aws.yaml", ("available_node_types", "head", "resources"), {"CPU": 4}, "head.resources.CPU: write 0"),
        ("aws.yaml", ("head_node_type",), "haed", "`head_node_type` must be one of"),
        ("aws.yaml", ("max_workers",), 5, "max_workers: 5 is less than the groups' maxima together (14)"),
        ("aws.yaml", ("max_wokers",), 5, "'max_wokers' was unexpected"),
        ("aws.yaml", ("docker", "image"), "x/dat-ray:0.2.0-ray2.59.0", f"has Ray 2.59.0, this machine {ray.__version__}"),
        ("aws.yaml", ("docker", "image"), "x/dat-ray:latest", "its tag names no version of Ray"),
        ("aws.yaml", ("docker", "run_options"), [], "RAY_AUTH_MODE=token is missing"),
        (
            "aws.yaml",
            ("head_start_ray_commands",),
            ["ray start --head --num-cpus=0 --dashboard-host=0.0.0.0"],
            "listens on 0.0.0.0",
        ),
        ("aws.yaml", ("head_start_ray_commands",), ["ray start --head"], "start the head with --num-cpus=0"),
        ("aws.yaml", ("head_start_ray_commands",), ["ray start --head"], "without RAY_enable_autoscaler_v2=1"),
        ("on-premise.yaml", ("min_workers",), 3, "min_workers: 3, but provider.worker_ips has 4 addresses"),
        ("on-premise.yaml", ("max_workers",), 9, "provider.worker_ips has 4 addresses"),
        ("on-premise.yaml", ("worker_start_ray_commands",), ["ray start"], "worker_start_ray_commands: no label"),
        ("on-premise.yaml", ("provider", "head_ip"), None, "provider.head_ip: missing"),
        ("kuberay/raycluster.yaml", ("kind",), "RayClutser", "kind: ray.io/v1 RayClutser"),
        ("kuberay/raycluster.yaml", ("spec", "rayVersion"), "2.59.0", "rayVersion: 2.59.0"),
        ("kuberay/raycluster.yaml", ("spec", "authOptions"), {"mode": "disabled"}, "authOptions.mode: write token"),
        ("kuberay/raycluster.yaml", ("spec", "headGroupSpec", "serviceType"), "LoadBalancer", "opens the dashboard"),
        ("kuberay/raycluster.yaml", ("spec", "headGroupSpec", "rayStartParams"), {}, "num-cpus: write"),
        ("kuberay/raycluster.yaml", ("spec", "workerGroupSpecs", 2, "minReplicas"), 5, "training: its minimum 5 exceeds"),
        ("kuberay/raycluster.yaml", ("spec", "workerGroupSpecs", 2, "replicas"), 9, "training.replicas: 9 is not between"),
        (
            "kuberay/raycluster.yaml",
            ("spec", "workerGroupSpecs", 0, "idleTimeoutSecond"),
            3,
            "'idleTimeoutSecond' was unexpected",
        ),
        ("kuberay/rayjob.yaml", ("spec", "entrypoint"), "", "spec.entrypoint"),
        ("kuberay/rayjob.yaml", ("spec", "deletionStrategy"), {"deletionRules": [{}]}, "excludes shutdownAfterJobFinishes"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, name: str, path: tuple, value: Any, words: str) -> None:
    assert any(words in problem for problem in changed(tmp_path, name, *path, value=value).problems)


@pytest.mark.parametrize(
    ("name", "path", "words"),
    [
        ("aws.yaml", ("available_node_types", "training", "idle_timeout_s"), "training.idle_timeout_s: missing"),
        ("kuberay/raycluster.yaml", ("spec", "workerGroupSpecs", 0, "idleTimeoutSeconds"), "generation-spot.idleTimeoutSeconds"),
        ("kuberay/rayjob.yaml", ("spec", "preRunningDeadlineSeconds"), "would wait for ever"),
        ("kuberay/rayjob.yaml", ("spec", "shutdownAfterJobFinishes"), "the cluster would stay"),
    ],
)
def test_what_is_left_out_is_named(tmp_path: Path, name: str, path: tuple, words: str) -> None:
    assert any(words in problem for problem in changed(tmp_path, name, *path, drop=True).problems)


def test_every_machine_of_one_s_own_starts_with_the_cluster() -> None:
    """By Ray's own reading of the file, which knows no resources of them, so that no request starts one."""
    from ray.autoscaler._private.util import prepare_config

    tree = prepare_config(yaml.safe_load((FOLDER / "on-premise.yaml").read_text()))
    [kind] = tree["available_node_types"].values()
    assert kind["resources"] == {}
    assert kind["min_workers"] == len(tree["provider"]["worker_ips"]) == 4


@pytest.mark.parametrize(
    ("name", "path", "value", "words"),
    [
        ("gcp.yaml", ("provider",), "gcp", "provider: 'gcp' is not of type 'object'"),
        ("gcp.yaml", ("provider",), None, "provider: None is not of type 'object'"),
        ("gcp.yaml", ("available_node_types", "training"), None, "available_node_types.training: None is not of type"),
        ("gcp.yaml", ("available_node_types",), ["head"], "available_node_types: ['head'] is not of type"),
        ("gcp.yaml", ("available_node_types", "training", "max_workers"), "EDIT_ME", "training.max_workers: 'EDIT_ME' is not"),
        ("gcp.yaml", ("available_node_types", "training", "min_workers"), None, "training.min_workers: None is not"),
        ("gcp.yaml", ("available_node_types", "training", "labels"), "training", "training.labels: 'training' is not"),
        ("gcp.yaml", ("available_node_types", "training", "labels"), {"ray-subcluster": 1}, "labels.ray-subcluster: 1 is not"),
        ("gcp.yaml", ("available_node_types", "training", "resources"), 4, "training.resources: 4 is not"),
        ("gcp.yaml", ("available_node_types", "training", "resources"), {"CPU": "4"}, "resources.CPU: '4' is not"),
        ("gcp.yaml", ("docker",), "image", "docker: 'image' is not"),
        ("gcp.yaml", ("head_node_type",), ["head"], "head_node_type: ['head'] is not"),
        ("gcp.yaml", ("head_start_ray_commands",), [{"ray": "start"}], "head_start_ray_commands.0: {'ray': 'start'} is not"),
        ("on-premise.yaml", ("max_workers",), "four", "max_workers: 'four' is not"),
        ("on-premise.yaml", ("provider", "worker_ips"), 4, "provider.worker_ips: 4 is not"),
        ("kuberay/raycluster.yaml", ("spec",), 7, "spec: 7 is not"),
        ("kuberay/rayjob.yaml", ("spec",), [7], "spec: [7] is not"),
        ("kuberay/rayjob.yaml", ("spec", "rayClusterSpec"), "small", "spec.rayClusterSpec: 'small' is not"),
        ("kuberay/rayjob.yaml", ("kind",), ["RayJob"], "kind: ray.io/v1 ['RayJob']"),
        ("kuberay/rayjob.yaml", ("metadata",), "mine", "metadata: 'mine' is not"),
        ("kuberay/raycluster.yaml", ("spec", "workerGroupSpecs", 1, "minReplicas"), "none", "minReplicas: 'none' is not"),
        ("kuberay/raycluster.yaml", ("spec", "workerGroupSpecs", 1), None, "workerGroupSpecs.1: None is not"),
        (
            "kuberay/raycluster.yaml",
            ("spec", "workerGroupSpecs", 1, "template", "spec", "containers", 0, "resources"),
            "large",
            "resources: 'large' is not",
        ),
    ],
)
def test_a_value_of_another_kind_is_named_and_no_group_is_made_of_it(
    tmp_path: Path, name: str, path: tuple, value: Any, words: str
) -> None:
    found = changed(tmp_path, name, *path, value=value)
    assert any(words in problem for problem in found.problems)
    assert found.groups == ()


@pytest.mark.parametrize("amount", ["four cards", "nan", "-1", "2 GPU"])
def test_an_amount_that_is_no_number_is_named(tmp_path: Path, amount: str) -> None:
    place = ("spec", "workerGroupSpecs", 2, "template", "spec", "containers", 0, "resources", "limits", "nvidia.com/gpu")
    found = changed(tmp_path, "kuberay/raycluster.yaml", *place, value=amount)
    assert f"training: GPUs '{amount}' is no number of them: write one, as in 8 or 500m" in found.problems
    assert next(group.gpus for group in found.groups if group.name == "training") is None


def test_thousandths_of_a_processor_are_read(tmp_path: Path) -> None:
    place = ("spec", "workerGroupSpecs", 2, "template", "spec", "containers", 0, "resources", "limits", "cpu")
    found = changed(tmp_path, "kuberay/raycluster.yaml", *place, value="3500m")
    assert next(group.cpus for group in found.groups if group.name == "training") == 3.5


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_the_shared_folder_is_the_container_s_user_s_once_it_is_mounted(name: str) -> None:
    commands = yaml.safe_load((FOLDER / name).read_text())["initialization_commands"]
    mounted = next(place for place, command in enumerate(commands) if "sudo mount " in command)
    # The uid and gid of `ray` in Ray's images.
    assert "sudo install -d -o 1000 -g 100 /shared/runs" in commands[mounted + 1 :]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_every_pod_can_write_to_the_shared_volume(name: str) -> None:
    spec = yaml.safe_load((FOLDER / "kuberay" / name).read_text())["spec"]
    spec = spec.get("rayClusterSpec", spec)
    pods = [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    assert [pod["securityContext"]["fsGroup"] for pod in pods] == [100] * 4


def test_sizes_are_read_for_the_doctor() -> None:
    groups = {group.name: group for group in read_cluster_file(str(FOLDER / "kuberay/raycluster.yaml")).groups}
    assert (groups["training"].cpus, groups["training"].gpus, groups["training"].most) == (32.0, 4.0, 2)
    groups = {group.name: group for group in read_cluster_file(str(FOLDER / "aws.yaml")).groups}
    assert (groups["generation-spot"].cpus, groups["generation-spot"].gpus) == (4, 1)


def test_the_dockerfile_builds_the_tested_ray() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    assert f"ARG RAY_VERSION={ray.__version__}\n" in text
    # Either variant installs a whole set that is here.
    named = set(re.findall(r"constraints[\w-]*\.txt", text))
    assert named == {"constraints.txt", "constraints-gpu.txt"}
    for name in named:
        assert f"ray=={ray.__version__}" in (FOLDER.parent / name).read_text().splitlines()


@pytest.mark.parametrize("name", [*FILES, "Dockerfile"])
def test_images_are_named_for_this_version_and_the_tested_ray(name: str) -> None:
    tags = re.findall(r"/dat-ray:([\w.]+)-ray([\w.]+)-[cg]pu", (FOLDER / name).read_text())
    assert tags
    assert set(tags) == {(dat_ray.__version__, ray.__version__)}


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "name: x"])
def test_other_files_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match="--cluster"):
        read_cluster_file(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize(
    "text",
    [
        "provider: {type: aws}\nwhen: 2025-13-01\n",
        "provider: " + "[" * 3000,
        "provider: &a {x: *a}\n",
        "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 28)), "provider: {}"]),
        "provider: {type: aws}\nmax_workers: 1\nmax_workers: 2\n",
    ],
    ids=["no date", "deep", "in itself", "bomb", "twice"],
)
def test_a_file_that_no_reader_should_follow_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="not a readable YAML file") as told:
        read_cluster_file(str(path))
    assert str(told.value).isprintable()
