"""Whether the weights of engines that run at the same time fit into this machine, before one of them is started."""

from __future__ import annotations

import os
from collections.abc import Sequence

import psutil

from dat_ray.config.schema import Recipe
from dat_ray.engines.checks import EngineFacts
from dat_ray.errors import InputError

# Of the bytes of the files, by what they are loaded as.
_SHARE = {None: 1.0, "fp8": 0.5}


def check_memory(recipe: Recipe, facts: Sequence[EngineFacts]) -> None:
    """Holds the weights of a recipe's engines on CPUs against the memory of this machine.

    Only what no setting of an engine can change is counted, so that nothing is refused that could run: files as they are,
    without caches, activations and other programs; `dat doctor` looks closer. Of a cluster, and of GPUs, nothing is said.

    Args:
        recipe: a run's.
        facts: of `check_engines`.

    Raises:
        InputError: names the largest of the engines that do not fit.
    """
    if os.environ.get("RAY_ADDRESS", "") not in ("", "local"):
        return
    engines, sizes = recipe.engines(), {}
    for one in facts:
        config, pool_name = engines[one.section]
        pool = getattr(recipe.cluster, pool_name)
        if not pool.num_gpus:
            sizes[one.section] = int(one.weights * _SHARE[config.quantization] * pool.min_actors)
    generation = ["target", "judge.reader", *(["sampler"] if recipe.selection.source != "goals" else [])]
    total = psutil.virtual_memory().total
    for together in (*([section] for section in sizes), [section for section in generation if section in sizes]):
        wanted = sum(sizes[section] for section in together)
        if wanted > total:
            largest = max(together, key=lambda section: sizes[section])
            beside = f" beside {' and '.join(section for section in together if section != largest)}" if len(together) > 1 else ""
            remedy = (
                f"the weights{beside} take {wanted / 2**30:.1f} GiB, and this machine has {total / 2**30:.1f}: name a smaller "
                "model, lower min_actors, or run on a cluster"
            )
            raise InputError(f"{largest}.model", engines[largest][0].model, remedy)
