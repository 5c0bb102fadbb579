"""The limits of an interval, where a test is certain that it has some."""

from __future__ import annotations

from typing import Protocol


class HasLimits(Protocol):
    """An `Interval` of the measures, or an `Estimate` of metrics.json."""

    @property
    def low(self) -> float | None: ...

    @property
    def high(self) -> float | None: ...


def limits(found: HasLimits) -> tuple[float, float]:
    """Both limits; fails where they are not known."""
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def covers(found: HasLimits, truth: float) -> bool:
    low, high = limits(found)
    return low <= truth <= high
