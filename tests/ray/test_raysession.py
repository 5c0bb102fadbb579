"""A private Ray: its server is known as one, and SIGTERM of the driver that holds it takes it down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

CODE = """
import os, sys, time
import ray
import dat_ray.cli as cli
from dat_ray.config.cluster import ClusterConfig
from dat_ray.preflight import check_address
from dat_ray.raysession import start_ray

def wait(arguments):
    with start_ray(ClusterConfig(local_cpus=1, object_store_gib=0.1)):
        check_address(ray.get_runtime_context().gcs_address)
        spins = ray.remote(lambda: os.environ.get("GOMP_SPINCOUNT"))
        print("ready", ray.get(spins.remote()), flush=True)
        time.sleep(120)

cli._recipes = wait
sys.exit(cli.main(["recipes"]))
"""


@pytest.mark.fault
def test_sigterm_unwinds_and_takes_the_private_ray_down() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    # A thread of an engine that waits for another soon leaves its core to other engines.
    assert process.stdout.readline() == "ready 1000\n"
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors == "dat recipes: stopped\n"
