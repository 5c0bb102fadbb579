"""Over-refusal in a sampler's style: harmless prompts that it draws, asked of every model."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from dat_ray.config.schema import Recipe
from dat_ray.data.schemas import HARMLESS_HELD_OUT
from dat_ray.evaluation.attacks.base import Setup
from dat_ray.evaluation.attacks.inpainting import Inpainting
from dat_ray.evaluation.questions import INPAINTED_OVER_REFUSAL, SeedScope, behaviors_of


class HarmlessInpainting(Inpainting):
    """No attack, though it is made like one: nobody should refuse these prompts.

    They are drawn by the training sampler for the openings of held-out harmless requests. What a model refuses of them it
    refuses for their style.
    """

    name = INPAINTED_OVER_REFUSAL
    title = "Harmless in-painted prompts"
    description = "prompts drawn by the training sampler for held-out harmless requests"
    prompts_folder = "prompts_harmless"

    def samples(self) -> int:
        return self.config.harmless_inpainting_samples


def harmless_inpainting(
    recipe: Recipe, scope: SeedScope, behaviors: pa.Table, weights: Mapping[str, str | None]
) -> HarmlessInpainting | None:
    """What is to be drawn and asked; None where there are no held-out harmless requests.

    Args:
        recipe: resolved.
        scope: of the suite.
        behaviors: schema BEHAVIORS.
        weights: of the recipe's models by field, the sampler among them.
    """
    requests = behaviors_of(behaviors, HARMLESS_HELD_OUT)
    return HarmlessInpainting(Setup(recipe, scope, requests, weights)) if requests else None
