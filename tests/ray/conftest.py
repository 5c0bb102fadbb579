"""One small Ray cluster for all tests of this folder. It is private to the test session and taken down with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from dat_ray.config.cluster import ClusterConfig
from dat_ray.raysession import start_ray
from tests.ray.tiny_training import save_tiny_chat_model


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
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


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny chat model."""
    folder = tmp_path_factory.mktemp("tiny-chat-model")
    save_tiny_chat_model(folder)
    return folder
