"""Which stages a run goes through, round by round.

A round draws prompts, keeps some and trains on them; the model that it leaves answers the prompts of the next. Evaluation and
report are of the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import FIRST_ROUND, RunDir, last_round
from dat_ray.data.shards import has_manifest
from dat_ray.generation.select import needs_candidates

OF_A_ROUND = ("generate", "select", "train")


@dataclass(frozen=True)
class RunStep:
    """One stage of one round.

    Attributes:
        stage: its name.
        round_index: the round; the first one for stages that are of no round.
        label: for people: the round is told where there are several.
    """

    stage: str
    round_index: int
    label: str


def steps(recipe: Recipe, run: RunDir, stages: Sequence[str]) -> list[RunStep]:
    """The steps of a call, in order. Those that are complete are among them: each stage sees that for itself.

    Of one stage alone the rounds for which everything is there that it needs: `dat generate` draws for the next round once
    `dat train` has trained the one before.
    """
    inner = [stage for stage in stages if stage in OF_A_ROUND]
    rounds = range(FIRST_ROUND, last_round(recipe) + 1)
    if len(inner) == 1:
        ready = [index for index in rounds if _ready(inner[0], recipe, run, index)]
        # The first round tells what it lacks.
        rounds = range(FIRST_ROUND, max(ready, default=FIRST_ROUND) + 1)
    first = [_step(stage, index, recipe) for index in rounds for stage in inner]
    return [*first, *(RunStep(stage, FIRST_ROUND, stage) for stage in stages if stage not in OF_A_ROUND)]


def _step(stage: str, index: int, recipe: Recipe) -> RunStep:
    return RunStep(stage, index, stage if recipe.rounds == 1 else f"{stage}, round {index + 1} of {recipe.rounds}")


def _ready(stage: str, recipe: Recipe, run: RunDir, index: int) -> bool:
    if stage == "generate":
        return index == FIRST_ROUND or has_manifest(run.training(index - 1))
    if stage == "select":
        return has_manifest(run.candidates(index)) if needs_candidates(recipe) else index == FIRST_ROUND
    return has_manifest(run.training_set(index))


def adapter_before(run: RunDir, index: int) -> str | None:
    """The adapter with which the target answers a round's prompts: None in the first."""
    if index == FIRST_ROUND:
        return None
    before = run.adapter(index - 1)
    # Engines have working directories of their own.
    return before if "://" in before else str(Path(before).absolute())
