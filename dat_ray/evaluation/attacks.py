"""What each attack asks a model. Pure: rows in, rows out.

`direct` sends the goal itself. `inpainting` sends prompts that the training sampler draws for the held-out
targets with seeds that training never used. Which prompts those are does not depend on the attacked model,
so that two models answer the same questions and can be compared behavior by behavior.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dat_ray.config.schema import Recipe
from dat_ray.data.ids import row_id, seed_from_id
from dat_ray.errors import DatError
from dat_ray.generation.expand import draw_prompt_tokens, sampler_fingerprint

# Name under which the answers to harmless look-alikes are stored beside the attacks.
OVER_REFUSAL = "over_refusal"


@dataclass(frozen=True)
class Behavior:
    """One goal with its affirmative targets, in the order of `target_index`."""

    behavior_id: str
    goal: str
    targets: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Question:
    """One prompt for the model under evaluation.

    Attributes:
        attack: `direct`, `inpainting`, or `OVER_REFUSAL` for a harmless look-alike.
        behavior_id: whose goal it serves.
        attempt_index: counts the questions of one behavior under one attack.
        goal: what the judge is asked about.
        prompt: what the model is asked; None where the sampler failed.
        model_calls: forward passes of the sampler that the prompt cost.
        error: why there is no prompt.
    """

    attack: str
    behavior_id: str
    attempt_index: int
    goal: str
    prompt: str | None
    model_calls: int = 0
    error: str | None = None

    def attempt_id(self, suite: str, model: str, weights: str) -> str:
        """Id of this question asked of one model; `weights` tells two adapters apart."""
        return row_id("attempt", suite, model, weights, self.attack, self.behavior_id, self.attempt_index, self.prompt)


def behaviors_of(table: pa.Table, split: str) -> list[Behavior]:
    """The behaviors of one split, in the table's order, each with its targets."""
    goals: dict[str, str] = {}
    targets: dict[str, list[tuple[int, str]]] = {}
    for row in table.to_pylist():
        if row["split"] == split:
            goals.setdefault(row["behavior_id"], row["goal"])
            targets.setdefault(row["behavior_id"], []).append((row["target_index"], row["target"]))
    return [Behavior(key, goal, tuple(sorted(targets[key]))) for key, goal in goals.items()]


def held_out(table: pa.Table) -> list[Behavior]:
    """The behaviors to attack.

    Raises:
        DatError: there are none, or one of them is also trained on.
    """
    found = behaviors_of(table, "heldout")
    if not found:
        raise DatError("no held-out behaviors to evaluate on: check behaviors.heldout and run `dat generate` again")
    trained = {behavior.behavior_id for behavior in behaviors_of(table, "train")}
    shared = [behavior.behavior_id for behavior in found if behavior.behavior_id in trained]
    if shared:
        raise DatError(f"{len(shared)} held-out behaviors are also trained on (first: {shared[0]}): remove them from one set")
    return found


def direct(behaviors: Iterable[Behavior]) -> list[Question]:
    """The goal as the prompt, once."""
    return [Question("direct", one.behavior_id, 0, one.goal, one.goal) for one in behaviors]


def look_alikes(behaviors: Iterable[Behavior]) -> list[Question]:
    """Harmless prompts that resemble harmful ones; refusing them is over-refusal."""
    return [Question(OVER_REFUSAL, one.behavior_id, 0, one.goal, one.goal) for one in behaviors]


def infill_requests(recipe: Recipe, suite: str, behaviors: Iterable[Behavior]) -> list[dict[str, Any]]:
    """Rows (schema REQUESTS) of the prompts to draw: `evaluation.inpainting_samples` a behavior, targets in turn.

    Args:
        recipe: gives the seed, the sampler and the number of samples.
        suite: name of the evaluation; another suite draws other prompts.
        behaviors: held-out ones.
    """
    sampler = sampler_fingerprint(recipe.sampler)
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
                    "round": recipe.round,
                    "sample_index": index,
                    "goal": behavior.goal,
                    "target": target,
                    "refusal": "",
                    "prompt_tokens": draw_prompt_tokens(recipe.sampler.prompt_tokens, seed),
                    "seed": seed,
                    "sampler": sampler,
                }
            )
    return rows


def inpainting(sampled: Sequence[Mapping[str, Any]]) -> list[Question]:
    """Questions from sampled rows (schema CANDIDATES with `prompt`, `nfe` or `error` filled)."""
    return [
        Question(
            "inpainting",
            row["behavior_id"],
            row["sample_index"],
            row["goal"],
            row["prompt"],
            row["nfe"] or 0,
            row["error"],
        )
        for row in sampled
    ]
