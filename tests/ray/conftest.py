"""One small Ray cluster for all tests of this folder. It is private to the test session and taken down with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import ray

from dat_ray.config.cluster import ClusterConfig
from dat_ray.data.rundir import RunDir
from dat_ray.generation.stage import generate
from dat_ray.raysession import start_ray
from tests.ray.tiny_generation import Faults, engines, tiny_recipe, tiny_run
from tests.ray.tiny_training import save_tiny_chat_model

# In a process of its own: vLLM looks at every module of its process, and flask's objects answer with an error.
STORE = """
import sys
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("%s:%s" % server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """A bucket of an S3-compatible store on this machine, as a URI; this process and those it starts reach it."""
    command = [sys.executable, "-c", STORE]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        assert server.stdin is not None
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        assert address, "the object store did not start"
        patch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        pafs.S3FileSystem(endpoint_override=address, scheme="http", allow_bucket_creation=True).create_dir("runs")
        yield "s3://runs"
        server.stdin.close()


@pytest.fixture(scope="session")
def ray_cluster(object_store: str) -> Iterator[str]:
    """Starts Ray with 8 logical CPUs and yields the address, for tests that start drivers of their own."""
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS", "PYTHONPATH")}
    # Workers import the engines that are defined beside the tests.
    repository = Path(__file__).parents[2]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(repository), before["PYTHONPATH"] or ""])
    # Without these `start_ray` makes a cluster of its own, whose token the drivers that tests start inherit.
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    with start_ray(ClusterConfig(local_cpus=8, object_store_gib=0.25)):
        yield ray.get_runtime_context().gcs_address
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(autouse=True)
def _polled_often(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ray Train looks at its workers every two seconds, which is longer than these trainings take.
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # A process more for each group of workers, which takes longer to start than these trainings last: the drills of lost nodes
    # and of preemption have it.
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny chat model."""
    folder = tmp_path_factory.mktemp("tiny-chat-model")
    save_tiny_chat_model(folder)
    return folder


@pytest.fixture(scope="session")
def generated(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run whose candidates are finished."""
    root = tmp_path_factory.mktemp("generated")
    recipe = tiny_recipe()
    run = tiny_run(root / "run", recipe)
    generate(recipe, run, engines(Faults(str(root))))
    return run
