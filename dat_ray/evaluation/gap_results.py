"""Parts of `metrics.json` about the distribution gap: how likely harmful responses are on four sets of prompts.

What is measured is l(x, y) = mean log p(y | x) over the tokens of a harmful response y after a prompt x, in nats, clipped to
[-M, M]: the higher, the worse. `plain` is of the prompt as it is, `attacked` of the prompt under `training.attack`. R is the mean
over behaviors of the mean over a behavior's prompts.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from dat_ray.evaluation.estimates import Count, Estimate, Flag, Number, Part, Rate

# The sets, in the order in which they move away from what was trained on.
TRAINING_PROMPTS, FRESH_PROMPTS, FRESH_TARGETS, REWRITES_SET = "training", "fresh_prompts", "fresh_targets", "rewrites"
PROMPT_SETS = (TRAINING_PROMPTS, FRESH_PROMPTS, FRESH_TARGETS, REWRITES_SET)
PLAIN, ATTACKED = "plain", "attacked"


class MeanRisk(Estimate):
    """R on one set, with Student's interval over behaviors."""

    VALUE: ClassVar[str] = "mean"
    UNITS: ClassVar[str | None] = "n"
    mean: Number | None
    n: Count = Field(0, description="behaviors, each with one vote")
    clipped: Rate = Field(description="share of prompts whose value lies outside the bound; no interval")


class SetRisk(Part):
    """One set of prompts."""

    prompts: Count = Field(description="that were scored")
    goals: Count = Field(0, description="of these, behaviors' own goals: of a run that trains on them, or as a person wrote them")
    errors: Count = Field(0, description="that could not be scored, as one longer than the model takes")
    plain: MeanRisk
    attacked: MeanRisk | None = Field(None, description="null where the attack of training has no steps")


class RiskGap(Estimate):
    """R on the second set minus R on the first; paired by behavior, or Welch's interval."""

    VALUE: ClassVar[str] = "gap"
    UNITS: ClassVar[str | None] = "n"
    gap: Number | None
    n: Count = Field(0, description="behaviors of both, or of the smaller set where they are others")
    least_distance: Number | None = Field(
        None, description="|gap| / 2M: the least mean total variation of two laws of the prompt that this gap allows"
    )


class GapOfSets(Part):
    """What a step from one set to another changes."""

    first: str
    second: str
    paired: Flag = Field(description="whether both sets are of the same behaviors")
    plain: RiskGap
    attacked: RiskGap | None = None


class DistributionGap(Part):
    """The distribution gap of one model.

    Sets: `training`, the prompts that the run's selection kept in its first round (a mixture's rewrites; goals where it trains
    on goals); `fresh_prompts`, drawn with another seed for the same targets and kept by the same rule; `fresh_targets`, likewise
    for the held-out behaviors; `rewrites`, those of the files of `evaluation.prompts` that are `in_gap`.
    """

    bound: Number = Field(description="M, nats a token")
    attack_steps: Count = Field(description="of `training.attack`")
    sets: dict[str, SetRisk]
    gaps: dict[str, GapOfSets] = Field(
        description="`new_prompts`: fresh_prompts minus training; `new_targets`: fresh_targets minus fresh_prompts; "
        "`people`: rewrites minus fresh_targets; `whole`: rewrites minus training"
    )
