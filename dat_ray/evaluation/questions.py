"""What models are asked: questions of attacks about behaviors, texts of the attacker, searches. Pure: rows in, rows out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from dat_ray.data.ids import row_id, seed_from_id
from dat_ray.data.schemas import HELD_OUT, TRAIN
from dat_ray.errors import DatError

# Name under which the answers to harmless look-alikes are stored beside the attacks.
OVER_REFUSAL = "over_refusal"
# The same for prompts that a sampler drew for harmless requests: over-refusal in its style.
INPAINTED_OVER_REFUSAL = "over_refusal_inpainted"
# What is stored beside the attacks and is none: answers should not be refused.
HARMLESS_PROMPTS = (OVER_REFUSAL, INPAINTED_OVER_REFUSAL)
# Opening of the error of an attempt whose attacker wrote nothing usable. The attack failed, not the machinery: such
# rows are counted and shown, and do not stop the stage.
UNREADABLE = "the attacker's answer"
EMPTY_ANSWER = f"{UNREADABLE} is empty"
# Folder below the suite's that holds what searches with gradients found.
SEARCHES_FOLDER = "searches"
# The same of what is measured on the models themselves, a file a model.
SIDE_EFFECTS_FOLDER = "side_effects"


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
        attack: its name, or one of `HARMLESS_PROMPTS`.
        behavior_id: whose goal it serves.
        attempt_index: counts the questions of one behavior under one attack.
        goal: what the judge is asked about.
        prompt: what the model is asked; None where there is none.
        model_calls: what the prompt cost: forward passes of a sampler or a search, answers of an attacker.
        error: why there is no prompt.
        temperature: of the answer, 0 for the greedy one.
        seed: of a sampled answer; the same for every model, so that they can be compared question by question.
        prefill: what the model's turn is made to begin with.
        variant: what tells questions of one behavior apart in the results, such as a prompt's language.
        history: turns before the prompt, of the user and of the model in turn; judges read the prompt and its answer alone.
        goal_similarity: the cosine of prompt and goal, where it was measured; no part of what is asked.
    """

    attack: str
    behavior_id: str
    attempt_index: int
    goal: str
    prompt: str | None
    model_calls: int = 0
    error: str | None = None
    temperature: float = 0.0
    seed: int | None = None
    prefill: str | None = None
    variant: str | None = None
    history: tuple[str, ...] = ()
    goal_similarity: float | None = None

    def attempt_id(self, suite: str, model: str, weights: str) -> str:
        """Id of this question asked of one model; `weights` tells two adapters apart."""
        asked = (self.attack, self.behavior_id, self.attempt_index, self.prompt, self.temperature, self.seed, self.prefill)
        # One without a history has the id that it had before there were histories.
        return row_id("attempt", suite, model, weights, *asked, *self.history)


@dataclass(frozen=True)
class AttackerRequest:
    """One text for the attacker model to write.

    Attributes:
        text: what it is asked.
        seed: of its answer.
        temperature: of its answer.
    """

    text: str
    seed: int
    temperature: float = 1.0

    def rewrite_id(self, attacker: str) -> str:
        """Id of this request to one attacker."""
        return row_id("rewrite", attacker, self.text, self.seed)


@dataclass(frozen=True)
class SearchRequest:
    """One behavior to search for with gradients.

    Attributes:
        search_id: id of the row.
        behavior_id: of the behavior.
        goal: of the behavior.
        target: its affirmative response.
        seed: of the search.
    """

    search_id: str
    behavior_id: str
    goal: str
    target: str
    seed: int


@dataclass(frozen=True)
class SeedScope:
    """What attempt seeds are derived from, besides the behavior and the attempt.

    Attributes:
        suite: name of the evaluation; another suite draws others.
        seed: of the recipe.
    """

    suite: str
    seed: int

    def seed_of(self, attack: str, behavior_id: str, index: int | str) -> int:
        """The seed of one attempt, the same for every model."""
        return seed_from_id(row_id("attempt seed", self.suite, self.seed, attack, behavior_id, index))


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
    found = behaviors_of(table, HELD_OUT)
    if not found:
        raise DatError("no held-out behaviors to evaluate on: check behaviors.heldout and run `dat generate` again")
    trained = {behavior.behavior_id for behavior in behaviors_of(table, TRAIN)}
    shared = [behavior.behavior_id for behavior in found if behavior.behavior_id in trained]
    if shared:
        raise DatError(f"{len(shared)} held-out behaviors are also trained on (first: {shared[0]}): remove them from one set")
    return found


def look_alikes(behaviors: Iterable[Behavior]) -> list[Question]:
    """Harmless prompts that resemble harmful ones; refusing them is over-refusal."""
    return [Question(OVER_REFUSAL, one.behavior_id, 0, one.goal, one.goal) for one in behaviors]
