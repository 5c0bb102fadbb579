"""Clusters of several nodes on this machine, each a `ray start` in a process group of its own that is ended at the end."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

REPOSITORY = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
# A busy machine of two cores takes half a minute for a node.
SECONDS_TO_START = 180.0
SECRET = ("SOME_API_KEY", "k-5e1f0b7c9d")


@dataclass
class OwnCluster:
    """A cluster of this test.

    Attributes:
        address: of the GCS.
        dashboard: URL of the job server.
        environment: what a process needs to reach it.
        processes: of `ray start`.
        wanted: nodes that were asked for.
    """

    address: str
    dashboard: str
    environment: dict[str, str]
    processes: list[subprocess.Popen] = field(default_factory=list)
    wanted: int = 0

    def start(self, *arguments: str, **variables: str) -> None:
        self.processes.append(
            subprocess.Popen(
                [RAY, "start", *arguments, "--block", "--disable-usage-stats"],
                env=self.environment | variables,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def start_node(self, *arguments: str, **variables: str) -> None:
        """Starts a node and waits for it; Ray gives a node 30 s to come up, which a busy machine can miss."""
        self.wanted += 1
        for _ in range(3):
            self.start(*arguments, **variables)
            process = self.processes[-1]
            # Asked without a process of our own joining the cluster.
            command = [sys.executable, "-c", _NODES, self.address, str(self.wanted), str(SECONDS_TO_START)]
            with subprocess.Popen(command, env=self.environment) as asking:
                wait_for("a node", lambda ends=(process, asking): any(end.poll() is not None for end in ends))
                if process.poll() is None and asking.returncode == 0:
                    return
                asking.kill()
        raise AssertionError("a node did not start in three tries")

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command that can reach the cluster."""
        return subprocess.run(
            command, env=self.environment | variables, capture_output=True, text=True, check=False, timeout=SECONDS_TO_START * 2
        )

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes:
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    continue
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and any(process.poll() is None for process in self.processes):
                time.sleep(0.1)


# Ends once so many nodes are up. To load Ray takes a second of a core: it is done once, not at each look.
_NODES = """
import sys, time
from ray._raylet import GcsClient
address, wanted, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
deadline, last = time.monotonic() + seconds, None
while time.monotonic() < deadline:
    try:
        nodes = GcsClient(address=address).get_all_node_info(timeout=10).values()
        if sum(node.state == 0 for node in nodes) >= wanted:
            sys.exit(0)
    except Exception as error:
        last = error  # the head may not be up yet
    time.sleep(0.3)
sys.exit(f"{wanted} nodes were not up in {seconds} s, the last look said {last!r}")
"""


# Above those that Ray's workers take, and below those from which the system serves whoever asks for any: what is free stays so
# until its node, which may start a minute later, listens on it.
PORTS = range(20_000, 32_000)


def free_ports(count: int) -> list[int]:
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as each, suppress(OSError):
            each.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"{count} ports are not free")


def wait_for(what: str, ready: Any, seconds: float = SECONDS_TO_START) -> Any:
    """Asks until the answer is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := ready():
            return found
        time.sleep(0.3)
    raise AssertionError(f"{what} did not happen within {seconds} s")


def _environment(token: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return kept | {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        # A job's command is `python`.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "500",
        # Ray makes its workers nicer than whatever else a busy machine runs.
        "RAY_worker_niceness": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        # Of every process of the cluster, jobs among them: nothing that is stored may hold it.
        SECRET[0]: SECRET[1],
    }


@contextmanager
def own_cluster(workers: Sequence[tuple[str, int]]) -> Iterator[OwnCluster]:
    """A head without CPUs, with a dashboard, and a node for each (ray-subcluster label, CPUs)."""
    port, dashboard, *agents = free_ports(3 + len(workers))
    # Ray's sockets lie below it, and their paths must stay short.
    folder = tempfile.mkdtemp(prefix="dat-", dir="/tmp")
    cluster = OwnCluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", _environment(secrets.token_hex(16)))
    common = ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000"]
    head = ["--head", f"--port={port}", "--num-cpus=0", f"--temp-dir={folder}", f"--dashboard-port={dashboard}"]
    try:
        cluster.start_node(*head, "--dashboard-host=127.0.0.1", f"--dashboard-agent-listen-port={agents[0]}", *common)
        for number, ((label, cpus), agent) in enumerate(zip(workers, agents[1:], strict=True)):
            # As on a machine of its own: nodes that share a folder remove each other's copy of a job's working directory,
            # under the feet of the job that stands in it.
            own = [f"--temp-dir={folder}/{number}", f"--labels=ray-subcluster={label}", f"--dashboard-agent-listen-port={agent}"]
            cluster.start_node(f"--address=127.0.0.1:{port}", f"--num-cpus={cpus}", *own, *common)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def autoscaling_cluster(groups: dict[str, dict[str, Any]], idle_seconds: float) -> Iterator[OwnCluster]:
    """A head without CPUs and an autoscaler whose nodes are processes of this machine.

    Args:
        groups: name -> `resources`, `labels`, `min_workers`, `max_workers`.
        idle_seconds: after which a node ends.
    """
    [port] = free_ports(1)
    folder = tempfile.mkdtemp(prefix="dat-", dir="/tmp")
    ip = ray.util.get_node_ip_address()
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    lists = [*(f"{name}_commands" for name in commands), "cluster_synced_files", "rsync_exclude", "rsync_filter"]
    empty: dict[str, Any] = {name: [] for name in lists}
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
        "gcs_address": f"{ip}:{port}",
    }
    config = {
        "cluster_name": "fake",
        "max_workers": sum(group["max_workers"] for group in groups.values()),
        "provider": provider,
        "available_node_types": {
            # The provider knows its head by this name alone.
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **{name: {"node_config": {}, "min_workers": 0, **group} for name, group in groups.items()},
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": idle_seconds / 60,
        **empty,
    }
    path = Path(folder) / "autoscaling.yaml"
    path.write_text(json.dumps(config))
    cluster = OwnCluster(f"{ip}:{port}", "", _environment(secrets.token_hex(16)))
    try:
        cluster.start_node(
            "--head",
            f"--port={port}",
            "--num-cpus=0",
            "--object-store-memory=100000000",
            "--include-dashboard=false",
            f"--autoscaling-config={path}",
            f"--temp-dir={folder}",
            AUTOSCALER_UPDATE_INTERVAL_S="1",
            RAY_FAKE_CLUSTER="1",
            RAY_enable_autoscaler_v2="1",
            RAY_CLOUD_INSTANCE_ID=FAKE_HEAD_NODE_ID,
            RAY_OVERRIDE_NODE_ID_FOR_TESTING=FAKE_HEAD_NODE_ID,
        )
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
