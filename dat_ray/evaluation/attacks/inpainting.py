"""In-painting (arXiv 2511.00203): prompts that a diffusion sampler draws for the held-out targets.

`inpainting` uses the training sampler with seeds that training never used, `inpainting_heldout` another sampler, which tells
robustness to in-painted prompts from robustness to one sampler's prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dat_ray.config.models import SamplerConfig
from dat_ray.config.schema import Recipe
from dat_ray.data.ids import row_id, seed_from_id
from dat_ray.data.rundir import FIRST_ROUND
from dat_ray.evaluation.attacks.questions import Behavior, Question
from dat_ray.generation.expand import draw_prompt_tokens

INPAINTING, HELDOUT = "inpainting", "inpainting_heldout"
# Section of the recipe that describes each attack's sampler.
SECTIONS = {INPAINTING: "sampler", HELDOUT: "evaluation.heldout_sampler"}


def samplers(recipe: Recipe) -> dict[str, SamplerConfig]:
    """The sampler of each in-painting attack that the recipe asks for."""
    found = {INPAINTING: recipe.sampler, HELDOUT: recipe.evaluation.heldout_sampler}
    return {name: config for name, config in found.items() if name in recipe.evaluation.attacks and config is not None}


def infill_requests(
    recipe: Recipe, suite: str, behaviors: Iterable[Behavior], config: SamplerConfig, sampler: str
) -> list[dict[str, Any]]:
    """Rows (schema REQUESTS) of the prompts to draw: `evaluation.inpainting_samples` a behavior, targets in turn.

    Args:
        recipe: gives the seed and the number of samples.
        suite: name of the evaluation; another suite draws other prompts.
        behaviors: held-out ones.
        config: of the sampler.
        sampler: its fingerprint, see `dat_ray.models.identity`.
    """
    rows: list[dict[str, Any]] = []
    for behavior in behaviors:
        for index in range(recipe.evaluation.inpainting_samples):
            target_index, target = behavior.targets[index % len(behavior.targets)]
            identifier = row_id("eval", suite, recipe.seed, behavior.behavior_id, target_index, target, index, sampler)
            seed = seed_from_id(identifier)
            rows.append(
                {
                    "candidate_id": identifier,
                    "behavior_id": behavior.behavior_id,
                    "target_index": target_index,
                    "round": FIRST_ROUND,
                    "sample_index": index,
                    "goal": behavior.goal,
                    "target": target,
                    "refusal": "",
                    "prompt_tokens": draw_prompt_tokens(config.prompt_tokens, seed),
                    "seed": seed,
                    "sampler": sampler,
                }
            )
    return rows


def inpainting(sampled: Sequence[Mapping[str, Any]], attack: str = INPAINTING) -> list[Question]:
    """Questions from sampled rows (schema CANDIDATES with `prompt`, `nfe` or `error` filled)."""
    return [
        Question(attack, row["behavior_id"], row["sample_index"], row["goal"], row["prompt"], row["nfe"] or 0, row["error"])
        for row in sampled
    ]
