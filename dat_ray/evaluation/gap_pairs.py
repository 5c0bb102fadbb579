"""Which prompts are scored with which responses for the distribution gap: drawn ones, and written ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from dat_ray.config.evaluation import GapConfig
from dat_ray.config.schema import Recipe
from dat_ray.data.ids import row_id
from dat_ray.data.row_types import Row
from dat_ray.data.schemas import HELD_OUT, TRAIN
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.gap_results import PROMPT_SETS, REWRITES_SET, TRAINING_PROMPTS
from dat_ray.evaluation.questions import Behavior, Question

# Folder below the suite's.
RISKS_FOLDER = "risks"
# Rows of a shard and of one call: under an attack a row takes as long as in training, and each call that ends is progress.
RISK_ROWS = 16
# Splits whose behaviors are measured.
MEASURED = (TRAIN, HELD_OUT)


@dataclass(frozen=True)
class ScoredPair:
    """A prompt with the response that it is to lead to.

    Attributes:
        prompt_set: `training`, `fresh_prompts`, `fresh_targets` or `rewrites`; of the base model also `training/ARM@SEED`.
        behavior_id: whose response it is.
        source_id: of the candidate, or of the question, that it comes from.
        prompt, target, refusal: texts.
        is_goal: whether the prompt is the behavior's own goal.
        variant: of a written prompt.
    """

    prompt_set: str
    behavior_id: str
    source_id: str
    prompt: str
    target: str
    refusal: str
    is_goal: bool
    variant: str | None = None

    @property
    def place(self) -> tuple[str, ...]:
        """What tells it from the other pairs of its set."""
        return self.behavior_id, self.source_id, self.prompt, self.target

    def risk_id(self, suite: str, model: Model) -> str:
        """Id of its score by one model."""
        asked = (self.prompt_set, self.behavior_id, self.source_id, self.prompt, self.target)
        return row_id("risk", suite, model.name, model.weights, *asked)


def measured_behaviors(table: pa.Table, recipe: Recipe) -> dict[str, set[str]]:
    """Ids of the behaviors whose prompts are scored, by split: at most `evaluation.gap.behaviors` of each.

    Args:
        table: rows of schema BEHAVIORS.
        recipe: with `evaluation.gap`.
    """
    gap = _gap(recipe)
    found = {split: sorted({row["behavior_id"] for row in table.to_pylist() if row["split"] == split}) for split in MEASURED}
    for ids in found.values():
        ids.sort(key=lambda one: row_id("gap behavior", gap.seed, one))
    return {split: set(ids[: gap.behaviors]) for split, ids in found.items()}


def drawn_pairs(prompt_set: str, rows: Iterable[Row], goals: Mapping[str, str], recipe: Recipe) -> list[ScoredPair]:
    """Pairs of kept prompts, at most `evaluation.gap.prompts` a behavior.

    A behavior's own goal is no draw of the sampler's: where it stands beside prompts it is left out.

    Args:
        prompt_set: their set.
        rows: of schema TRAINING_SET.
        goals: of the behaviors that are measured, by their ids; rows of others are left out.
        recipe: with `evaluation.gap`.
    """
    only_goals = prompt_set == TRAINING_PROMPTS and recipe.selection.source == "goals"
    pairs = [
        ScoredPair(
            prompt_set,
            row["behavior_id"],
            row["candidate_id"],
            row["prompt"],
            row["target"],
            row["refusal"],
            row["prompt"] == goals[row["behavior_id"]],
        )
        for row in rows
        if row["behavior_id"] in goals
    ]
    return _at_most([pair for pair in pairs if only_goals or not pair.is_goal], recipe)


def written_pairs(
    questions: Iterable[Question], behaviors: Sequence[Behavior], table: pa.Table, recipe: Recipe
) -> list[ScoredPair]:
    """Written prompts with the held-out behaviors' responses, a behavior's targets in turn.

    Args:
        questions: of the files of `evaluation.prompts` that are `in_gap`.
        behaviors: held-out ones.
        table: rows of schema BEHAVIORS.
        recipe: with `evaluation.gap`.
    """
    wanted = measured_behaviors(table, recipe)[HELD_OUT]
    known = {one.behavior_id: one for one in behaviors if one.behavior_id in wanted}
    refusals = {
        (row["behavior_id"], row["target_index"]): row["refusal"] for row in table.to_pylist() if row["split"] == HELD_OUT
    }
    taken: dict[str, int] = {}
    found = []
    for question in questions:
        if question.behavior_id not in known:
            continue
        behavior = known[question.behavior_id]
        number = taken[behavior.behavior_id] = taken.get(behavior.behavior_id, -1) + 1
        target_index, target = behavior.targets[number % len(behavior.targets)]
        assert question.prompt is not None, "a file's rows have prompts"
        found.append(
            ScoredPair(
                REWRITES_SET,
                behavior.behavior_id,
                row_id(question.attack, behavior.behavior_id, question.attempt_index),
                question.prompt,
                target,
                refusals[behavior.behavior_id, target_index],
                question.prompt == behavior.goal,
                question.variant,
            )
        )
    return _at_most(found, recipe)


def _at_most(pairs: Sequence[ScoredPair], recipe: Recipe) -> list[ScoredPair]:
    """So many of each behavior, the same ones for every model: the first by a hash of what they are."""
    gap = _gap(recipe)
    by_behavior: dict[str, list[ScoredPair]] = {}
    for pair in pairs:
        by_behavior.setdefault(pair.behavior_id, []).append(pair)
    return [
        pair
        for _, found in sorted(by_behavior.items())
        for pair in sorted(found, key=lambda one: row_id("gap", gap.seed, one.source_id, one.prompt, one.target))[: gap.prompts]
    ]


def _gap(recipe: Recipe) -> GapConfig:
    assert recipe.evaluation.gap is not None, "asked for where the gap is measured"
    return recipe.evaluation.gap


def in_order(pairs: Iterable[ScoredPair]) -> list[ScoredPair]:
    """By set, as the report has them; sets of other runs (`training/ARM@SEED`) beside their own kind."""
    return sorted(pairs, key=lambda pair: place_of_set(pair.prompt_set))


def place_of_set(prompt_set: str) -> int:
    """Of a set, or of the kind that another run's belongs to, among `PROMPT_SETS`."""
    return PROMPT_SETS.index(prompt_set.partition("/")[0])
