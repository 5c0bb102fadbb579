"""The target's actor, around an engine that scores as a real one does: a row without a prompt has no log-probability."""

from __future__ import annotations

from collections.abc import Sequence

from dat_ray.config.schema import Recipe
from dat_ray.engines.base import Completion
from dat_ray.errors import InputError
from dat_ray.generation.actors import TargetActor


class Scored:
    """Answers with the prompt, and gives a prompt's length as its log-probability."""

    name = "scored"

    def complete(self, prompts: Sequence[str], max_new_tokens: int) -> list[Completion]:
        return [Completion(f"to {prompt}", 1, True) for prompt in prompts]

    def logprob(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        if not all(prompts):
            raise InputError("prompt", "", "is empty")
        return [-float(len(prompt)) for prompt in prompts]


def test_a_prompt_that_the_sampler_left_empty_is_answered_and_not_scored() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "behaviors": {"path": "x", "heldout": {"path": "x"}},
            "sampler": {"model": "x"},
            "target": {"model": "m"},
            "training": {"retain_rows": 0, "retain_weight": 0.0},
        }
    )
    actor = TargetActor(recipe, None, None, None)
    actor.engine = Scored()
    found = actor.work([{"prompt": prompt, "target": "Sure"} for prompt in ("one", "", "three")])
    assert [row["completion"] for row in found] == ["to one", "to ", "to three"]
    assert [row["target_logprob"] for row in found] == [-3.0, None, -5.0]
