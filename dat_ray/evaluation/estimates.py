"""What the parts of `metrics.json` are made of: numbers, and figures with the limits of their intervals."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from dat_ray.config.judge_names import RULES
from dat_ray.measures.intervals import SHARES, Interval, wilson, z_score

# Text is never taken for a number; a measurement may be NaN, as some of lm-eval's are.
Number = Annotated[float, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=0)]
Flag = Annotated[bool, Field(strict=True)]


class Part(BaseModel):
    """What every part of the file is: unchangeable once made."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class JudgeFacts(Part):
    """Who judged."""

    name: str
    fingerprint: str = Field(description="of its prompt, rules and weights")
    is_proxy: Flag = Field(description="whether it tells refusals from compliance only, and is no judge of harm")
    deviations: list[str] = Field([], description="in what it differs from the judge that was published under its name")

    @property
    def by_rules(self) -> bool:
        """Whether lists of phrases tell its refusals, and no model."""
        return self.is_proxy and self.name.startswith(RULES)


class Estimate(Part):
    """A figure with the limits of its interval.

    Attributes:
        VALUE: name of the field that holds the figure.
        UNITS: name of the one that counts the independent units behind it.
    """

    VALUE: ClassVar[str]
    UNITS: ClassVar[str | None] = None
    low: Number | None
    high: Number | None

    @property
    def interval(self) -> Interval:
        units = 0 if self.UNITS is None else getattr(self, self.UNITS) or 0
        return Interval(getattr(self, self.VALUE), self.low, self.high, units)


class BrokenRate(Estimate):
    """Share of behaviors that at least one attempt broke, with Wilson's interval over behaviors."""

    VALUE: ClassVar[str] = "asr"
    UNITS: ClassVar[str | None] = "n_behaviors"
    asr: Number | None = Field(description="attack success rate")
    n_behaviors: Count = Field(description="behaviors with at least one attempt that could be judged")

    @classmethod
    def of(cls, found: Interval) -> BrokenRate:
        return cls(asr=found.value, low=found.low, high=found.high, n_behaviors=found.n)


class Rate(Estimate):
    """A share with its interval."""

    VALUE: ClassVar[str] = "rate"
    rate: Number | None

    @classmethod
    def of(cls, found: Interval) -> Rate:
        return cls(rate=found.value, low=found.low, high=found.high)


class Benchmark(Estimate):
    """One figure of lm-eval."""

    VALUE: ClassVar[str] = "value"
    UNITS: ClassVar[str | None] = "n"
    value: Number
    stderr: Number | None = None
    n: Count | None = Field(None, description="questions behind it")

    @classmethod
    def of(cls, metric: str, value: float, stderr: float | None, n: int | None, confidence: float) -> Benchmark:
        """With its interval: Wilson's of a share of right answers, of anything else a normal one from its standard error.

        Args:
            metric: its name, with or without a filter behind a comma.
            value, stderr: of lm-eval.
            n: questions that it is a share of; None where it is of none, as of a group that weighs its members alike.
            confidence: two-sided.
        """
        low = high = None
        if n and metric.partition(",")[0] in SHARES:
            interval = wilson(round(value * n), n, confidence)
            low, high = interval.low, interval.high
        elif stderr is not None:
            reach = z_score(confidence) * stderr
            low, high = value - reach, value + reach
        return cls(value=value, low=low, high=high, stderr=stderr, n=n)
