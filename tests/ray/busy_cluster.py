"""Generates on a cluster of its own that another job has taken: python busy_cluster.py FOLDER CPUS SECONDS

Prints what `generate` says after SECONDS without progress.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ray

from dat_ray.config.cluster import ClusterConfig, TimeoutsConfig
from dat_ray.errors import DatError
from dat_ray.generation.stage import generate
from dat_ray.raysession import start_ray
from tests.ray.tiny_generation import Faults, engines, tiny_recipe, tiny_run


class Other:
    """Somebody else's actor."""

    def here(self) -> None: ...


def main(folder: str, cpus: float, seconds: int) -> None:
    recipe = tiny_recipe().model_copy(update={"timeouts": TimeoutsConfig(no_progress=seconds, engine_start=600)})
    run = tiny_run(Path(folder) / "run", recipe)
    with start_ray(ClusterConfig(local_cpus=8, object_store_gib=0.25)):
        other = ray.remote(num_cpus=cpus)(Other).remote()
        ray.get(other.here.remote(), timeout=120)
        try:
            generate(recipe, run, engines(Faults(folder)))
        except DatError as error:
            print(error)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
