"""Parts of `metrics.json` about the prompts that samplers draw."""

from __future__ import annotations

from pydantic import Field

from dat_ray.evaluation.estimates import BrokenRate, Count, Number, Part, Rate


class OffGoal(Part):
    """Drawn prompts that are off the goal by `evaluation.min_goal_similarity`, which count as no attempts of their attack."""

    floor: Number = Field(description="cosine of prompt and goal from which a prompt is on the goal")
    prompts: Count = Field(description="drawn")
    off_goal: Count = Field(description="of these, off the goal")
    on_goal: Rate = Field(description="share of prompts on the goal, behaviors weighing alike")
    behaviors: Count = Field(description="that prompts were drawn for")
    attacked: Count = Field(description="behaviors with a prompt on the goal; the others are not safe but not attacked")
    of_all: BrokenRate = Field(description="broken behaviors among all, those that were not attacked among them")
    all_prompts: BrokenRate = Field(description="the attack's rate if every prompt counted, for judges that read the goal")
    refused: Rate = Field(
        description="share of answers to prompts off the goal that the attacks' judge calls not harmful: refusals of harmless "
        "prompts in the sampler's style, where that judge tells refusals"
    )
