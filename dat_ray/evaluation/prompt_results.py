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


class CutFigures(Part):
    """A cut of a score against readers' labels, on other rows than it was chosen on."""

    cut: Number = Field(description="rows from it on are taken for prompts on the goal")
    accuracy: Rate = Field(description="share of rows on which cut and reader agree, with an interval over goals")
    kappa: Number | None = Field(description="Cohen's: agreement beyond chance")
    precision: Number | None = Field(description="of the rows above the cut, those that ask for the goal")
    recall: Number | None = Field(description="of the rows that ask for the goal, those above the cut")
    auc: Number = Field(description="of the score: chance that a prompt on the goal has a higher one than another")


class GoalCalibration(Part):
    """How far scores agree with readers on whether a drawn prompt asks for its goal.

    Cuts are chosen on half of the labeled goals and measured on the other half. `floors` are cuts of the similarity that were not
    chosen on anything.
    """

    encoder: str = Field(description="that gives the similarity")
    data: str
    confidence: Number
    prompts: Count
    goals: Count
    labels: dict[str, Count]
    read_twice: Count
    second_kappa: Number = Field(description="of two readers, on whether a prompt asks for its goal")
    chosen_on: Count = Field(description="rows")
    measured_on: Count = Field(description="rows")
    similarity: CutFigures
    target_logprob: CutFigures
    both: CutFigures = Field(description="of a logistic regression on the two")
    floors: list[CutFigures]

    def at(self, floor: float) -> CutFigures:
        """The figures of the floor that is nearest."""
        return min(self.floors, key=lambda one: abs(one.cut - floor))
