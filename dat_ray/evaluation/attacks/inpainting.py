"""In-painting (arXiv 2511.00203): prompts that a diffusion sampler draws for the held-out targets.

`inpainting` uses the training sampler with seeds that training never used, `inpainting_heldout` another sampler, which tells
robustness to in-painted prompts from robustness to one sampler's prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dat_ray.config.models import SamplerConfig
from dat_ray.data.ids import draw_prompt_tokens, row_id, seed_from_id
from dat_ray.data.row_types import Row
from dat_ray.data.rundir import FIRST_ROUND
from dat_ray.evaluation.attacks.base import Attack, Drawer, Drawing, Planned, Session, Setup
from dat_ray.evaluation.questions import INPAINTED_OVER_REFUSAL, Question
from dat_ray.models.identity import sampler_fingerprint

# Folder below the suite's for prompts of harmless requests.
HARMLESS_FOLDER = "prompts_harmless"


class Inpainting(Attack):
    """`inpainting_samples` prompts of each behavior, drawn by the training sampler."""

    name = "inpainting"
    title = "In-painted prompts"
    description = "prompts drawn by the training sampler for the held-out targets"
    needs = ("sampler",)
    access = "transfer"
    prompts_folder = "prompts"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._sampler = self.sampler()
        assert self._sampler is not None, "check_attacks has looked"
        weights = setup.weights[f"{self.needs[0]}.model"]
        fingerprint = sampler_fingerprint(self._sampler, weights)
        self._requests = infill_requests(setup, self.samples(), self._sampler, fingerprint)
        self._drawing: Drawing | None = None

    def sampler(self) -> SamplerConfig | None:
        """Who draws."""
        return self.setup.recipe.sampler

    def samples(self) -> int:
        """Prompts for each behavior."""
        return self.config.inpainting_samples

    def planned(self) -> Planned:
        return Planned(asked=len(self._requests), drawn=len(self._requests))

    def draw(self, samplers: Drawer) -> None:
        assert self._sampler is not None
        self._drawing = samplers.draw(self, self._sampler, self._requests)

    def ask(self, session: Session) -> None:
        assert self._drawing is not None, "drawn before it is asked"
        session.ask(drawn_questions(self.name, self._drawing.rows()))


class InpaintingHeldout(Inpainting):
    """The same by a sampler that the training never used."""

    name = "inpainting_heldout"
    title = "In-painted, held-out sampler"
    description = "prompts drawn by another sampler"
    needs = ("evaluation.heldout_sampler",)
    prompts_folder = "prompts_heldout"

    def sampler(self) -> SamplerConfig | None:
        return self.config.heldout_sampler


class HarmlessInpainting(Inpainting):
    """No attack, though it is made like one: nobody should refuse these prompts.

    They are drawn by the training sampler for the openings of held-out harmless requests. What a model refuses of them it
    refuses for their style.
    """

    name = INPAINTED_OVER_REFUSAL
    title = "Harmless in-painted prompts"
    description = "prompts drawn by the training sampler for held-out harmless requests"
    prompts_folder = HARMLESS_FOLDER

    def samples(self) -> int:
        return self.config.harmless_inpainting_samples


def infill_requests(setup: Setup, samples: int, config: SamplerConfig, sampler: str) -> list[Row]:
    """Rows (schema REQUESTS) of the prompts to draw: so many a behavior, targets in turn.

    Args:
        setup: gives the behaviors, the seed, and the suite: another one draws other prompts.
        samples: prompts for each behavior.
        config: of the sampler.
        sampler: its fingerprint, see `dat_ray.models.identity`.
    """
    rows: list[Row] = []
    suite, seed_of_recipe = setup.scope.suite, setup.scope.seed
    for behavior in setup.behaviors:
        for index in range(samples):
            target_index, target = behavior.targets[index % len(behavior.targets)]
            identifier = row_id("eval", suite, seed_of_recipe, behavior.behavior_id, target_index, target, index, sampler)
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
                    "prompt_tokens": draw_prompt_tokens(config.prompt_tokens, [seed])[0],
                    "seed": seed,
                    "sampler": sampler,
                }
            )
    return rows


def drawn_questions(attack: str, drawn: Sequence[Mapping[str, Any]]) -> list[Question]:
    """Questions from drawn rows (schema CANDIDATES with `prompt`, `nfe` or `error` filled)."""
    return [
        Question(
            attack,
            row["behavior_id"],
            row["sample_index"],
            row["goal"],
            row["prompt"],
            row["nfe"] or 0,
            row["error"],
            goal_similarity=row.get("goal_similarity"),
        )
        for row in drawn
    ]
