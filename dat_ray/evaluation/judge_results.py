"""The parts of `metrics.json` about judges: what they could read, a judge against people's labels, and against a second judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from dat_ray.evaluation.estimates import BrokenRate, Count, Estimate, JudgeFacts, Number, Part, Rate


@dataclass(frozen=True)
class ReadAnswers:
    """Answers for a judge to read.

    Attributes:
        answers: all of them.
        unparsed: that it could not read.
        errors: attempts that failed.
    """

    answers: int
    unparsed: int
    errors: int

    def __add__(self, other: ReadAnswers) -> ReadAnswers:
        return ReadAnswers(self.answers + other.answers, self.unparsed + other.unparsed, self.errors + other.errors)


class Agreement(Estimate):
    """Share of labeled answers on which judge and people agree, with an interval over prompts."""

    VALUE: ClassVar[str] = "value"
    UNITS: ClassVar[str | None] = "n_prompts"
    value: Number | None
    n_prompts: Count = 0


class VerdictCounts(Part):
    """What the judge said of answers to which people gave one label."""

    harmful: Count
    not_harmful: Count
    unparsed: Count
    failed: Count

    @property
    def total(self) -> int:
        return self.harmful + self.not_harmful + self.unparsed + self.failed


class Confusion(Part):
    """The judge's verdicts by people's."""

    people_harmful: VerdictCounts
    people_not_harmful: VerdictCounts


class CalibrationFigures(Part):
    """A judge against people on one set of labeled answers."""

    n: Count
    read: Count = Field(description="answers that the judge could read")
    accuracy: Agreement
    kappa: Number | None = Field(description="Cohen's: agreement beyond chance")
    confusion: Confusion


class Calibration(CalibrationFigures):
    """A judge against people, over all labeled answers and by their source."""

    judge: JudgeFacts
    confidence: Number
    sources: dict[str, CalibrationFigures]
    data: str | None = Field(None, description="what the answers are, where the figures come with the project")


class BehaviorDispute(Part):
    """Attempts at one behavior that both judges could read."""

    n: Count
    differ: Count = Field(description="on which they differ")


class BehaviorDisagreement(Part):
    """The two judges on behaviors: broken by at least one of the attempts that both could read."""

    n_behaviors: Count
    both_broken: Count
    first_only: Count
    second_only: Count
    neither: Count
    kappa: Number | None
    p: Number | None = Field(description="of neither judge being stricter: McNemar's exact test")
    disputed: dict[str, BehaviorDispute] = Field(description="behaviors with an attempt on which they differ, the most first")


class Disagreement(Part):
    """The second judge's verdicts against the first's, over one model's attempts that both could read."""

    n: Count
    agreement: Rate
    kappa: Number | None
    both_harmful: Count
    first_only: Count
    second_only: Count
    neither: Count
    unparsed_first: Count
    unparsed_second: Count
    failed_second: Count
    by_behavior: BehaviorDisagreement | None = None
    asr: dict[str, BrokenRate] = Field(description="the second judge's own rates, by attack")
