"""`dat bench vllm-target`: the target in its Ray actor, against bare vLLM and the torch target.

All three answer the same prompts greedily, taking turns in one run; the others sleep meanwhile. Bare vLLM is `LLM.generate` on
the same token ids, in this process, with the engine options of the recipe. Answers are compared.

dat bench vllm-target --json                                   # the demo's target: on two CPU cores a few minutes
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from dat_ray.bench.in_turns import add_options, device_name, memory_share, pool_of_one, take_turns
from dat_ray.config.cluster import ClusterConfig, TimeoutsConfig
from dat_ray.config.loading import load_recipe
from dat_ray.config.models import TargetConfig
from dat_ray.engines.base import Completion, TargetModel
from dat_ray.engines.factory import build_target
from dat_ray.engines.workers import Workers
from dat_ray.raysession import start_ray

# Requests that a small model answers at length; a number makes each of its own.
PROMPTS = (
    "Tell me a story about {} sailors and a whale.",
    "Explain how a lighthouse works to a class of {} children.",
    "Plan a walk of {} days through the mountains.",
    "List {} things that a gardener does in spring.",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add_options(parser, "target", rows=48)


def _complete(engine: TargetModel, prompts: list[str], tokens: int) -> list[Completion]:
    return engine.complete(prompts, tokens)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark; medians over repeats, ratios within each repeat.

    Raises:
        InputError: a recipe or model that cannot be had.
        DatError: vLLM or Ray did not start.
    """
    given = load_recipe(arguments.recipe, arguments.set).target
    config = given.model_copy(update={"backend": "vllm", **memory_share()})
    prompts = [PROMPTS[i % len(PROMPTS)].format(3 + i) for i in range(arguments.rows)]
    build = partial(build_target, config, arguments.threads)
    plain_config = config.model_copy(update={"backend": "torch", "gpu_memory_utilization": None})
    with start_ray(ClusterConfig()), Workers("target", build, pool_of_one(arguments.threads), TimeoutsConfig()) as workers:
        workers.wait()
        plain = build_target(plain_config, arguments.threads)

        def in_actor() -> list[Completion]:
            done: dict[int, list[Completion]] = dict(workers.map(_complete, [(prompts, config.max_new_tokens)]))
            return done[0]

        forms: dict[str, Callable[[], list[Completion]]] = {
            "actor": in_actor,
            "bare": _bare(config, prompts, arguments.threads),
            "torch": partial(_complete, plain, prompts, config.max_new_tokens),
        }
        found = take_turns(forms, arguments.repeats)
    texts = {form: [answer.text for answer in answers] for form, answers in found.results.items()}
    tokens = {form: sum(answer.tokens for answer in answers) for form, answers in found.results.items()}
    return {
        "bench": "vllm-target",
        "device": device_name(arguments.threads),
        "shape": f"{config.model}, {config.dtype}: {arguments.rows} prompts, up to {config.max_new_tokens} tokens, greedy",
        "rows_per_s": arguments.rows / found.median("actor"),
        "literal_rows_per_s": None,
        "ratio_to_literal": None,
        "mfu": None,
        "peak_bytes": None,
        "repeats": arguments.repeats,
        "tokens_per_s": tokens["actor"] / found.median("actor"),
        "bare_tokens_per_s": tokens["bare"] / found.median("bare"),
        "torch_tokens_per_s": tokens["torch"] / found.median("torch"),
        "ratio_to_bare": found.ratio("bare", "actor"),
        "ratio_to_torch": found.ratio("torch", "actor"),
        "seconds": found.seconds,
        "answers_equal_to_bare": sum(a == b for a, b in zip(texts["actor"], texts["bare"], strict=True)),
        "answers_equal_to_torch": sum(a == b for a, b in zip(texts["actor"], texts["torch"], strict=True)),
    }


def _bare(config: TargetConfig, prompts: list[str], threads: int) -> Callable[[], list[Completion]]:
    from dat_ray.engines import vllm_env
    from dat_ray.engines.target_text import TargetText
    from dat_ray.engines.vllm_target import start_target
    from dat_ray.models.served import served_model

    vllm_env.prepare(threads)
    folder = served_model(config.model, "target.model", config.revision)
    text = TargetText(config, folder)
    engine = start_target(config, folder)
    ids = text.prompt_ids(prompts)

    def run() -> list[Completion]:
        from vllm import SamplingParams

        wanted = SamplingParams(
            max_tokens=config.max_new_tokens, temperature=0.0, stop_token_ids=list(text.stop_ids), detokenize=False
        )
        outputs = engine.generate([{"prompt_token_ids": row} for row in ids], wanted, use_tqdm=False)
        return [text.completion(output.outputs[0].token_ids) for output in outputs]

    return run
