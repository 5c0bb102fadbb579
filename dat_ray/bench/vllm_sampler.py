"""`dat bench vllm-sampler`: vLLM's sampler in its Ray actor, against the same engine without Ray and the torch sampler.

All three write the same rows of a real sampler, taking turns in one run; the others sleep meanwhile. The engine without
Ray lies in this process, as the torch sampler does. At temperature 0 their tokens are compared.

dat bench vllm-sampler --json                                  # the shipped sampler: on two CPU cores a few minutes
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

from dat_ray.bench.in_turns import add_options, device_name, memory_share, pool_of_one, take_turns
from dat_ray.config.cluster import ClusterConfig, TimeoutsConfig
from dat_ray.config.loading import load_recipe
from dat_ray.engines.base import DiffusionSampler, InfillRequest, InfillResult
from dat_ray.engines.factory import build_sampler
from dat_ray.engines.workers import Workers
from dat_ray.raysession import start_ray

# Affirmative openings of ordinary answers, of one to two dozen tokens.
TARGETS = (
    "Sure, here is a recipe for bread with a thick crust",
    "The capital of France is Paris.",
    "Of course! A short plan for a picnic in the park, with games for children of every age",
    "Yes, here is a list of ten books about the sea that a beginner will enjoy reading in summer",
    "Here is how a bicycle chain is cleaned and oiled",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add_options(parser, "sampler", rows=24)


def _infill(engine: DiffusionSampler, requests: list[InfillRequest]) -> list[InfillResult]:
    return engine.infill(requests)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark; medians over repeats, ratios within each repeat.

    Raises:
        InputError: a recipe or model that cannot be had.
        DatError: vLLM or Ray did not start.
    """
    given = load_recipe(arguments.recipe, arguments.set).sampler
    config = given.model_copy(update={"backend": "vllm", **memory_share()})
    requests = [
        InfillRequest(str(i), TARGETS[i % len(TARGETS)], config.prompt_tokens[i % len(config.prompt_tokens)], i)
        for i in range(arguments.rows)
    ]
    # As generation hands rows out: a batch to a call, one more waiting in the actor's queue.
    size = config.batch_size
    chunks = [requests[low : low + size] for low in range(0, len(requests), size)]
    build = partial(build_sampler, config, arguments.threads)
    with start_ray(ClusterConfig()), Workers("sampler", build, pool_of_one(arguments.threads), TimeoutsConfig()) as workers:
        workers.wait()
        bare = build()
        plain = build_sampler(config.model_copy(update={"backend": "torch", "gpu_memory_utilization": None}), arguments.threads)

        def in_actor() -> list[InfillResult]:
            done = dict(workers.map(_infill, [(chunk,) for chunk in chunks]))
            return list(chain.from_iterable(done[index] for index in range(len(chunks))))

        def here(engine: DiffusionSampler) -> list[InfillResult]:
            return list(chain.from_iterable(engine.infill(chunk) for chunk in chunks))

        forms: dict[str, Callable[[], list[InfillResult]]] = {
            "actor": in_actor,
            "bare": partial(here, bare),
            "torch": partial(here, plain),
        }
        found = take_turns(forms, arguments.repeats)
    written = {form: [result.token_ids for result in results] for form, results in found.results.items()}
    return {
        "bench": "vllm-sampler",
        "device": device_name(arguments.threads),
        "shape": f"{config.model}, {config.dtype}: {len(requests)} rows of {min(config.prompt_tokens)} to "
        f"{max(config.prompt_tokens)} masks, {config.steps} steps, temperature {config.temperature:g}, batches of {size}",
        "rows_per_s": arguments.rows / found.median("actor"),
        "literal_rows_per_s": None,
        "ratio_to_literal": None,
        "mfu": None,
        "peak_bytes": None,
        "repeats": arguments.repeats,
        "bare_rows_per_s": arguments.rows / found.median("bare"),
        "torch_rows_per_s": arguments.rows / found.median("torch"),
        "ratio_to_bare": found.ratio("bare", "actor"),
        "ratio_to_torch": found.ratio("torch", "actor"),
        "seconds": found.seconds,
        "rows_equal_to_bare": sum(a == b for a, b in zip(written["actor"], written["bare"], strict=True)),
        "rows_equal_to_torch": sum(a == b for a, b in zip(written["actor"], written["torch"], strict=True)),
    }
