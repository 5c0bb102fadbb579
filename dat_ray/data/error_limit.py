"""How many rows of a stage may fail."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorLimit:
    """How many rows may fail, and how to say so.

    Args:
        total: rows of the stage.
        rate: share of them past which the stage stops.
        setting: field of the recipe that says so.
    """

    total: int
    rate: float
    setting: str = "generation.max_error_rate"

    @property
    def rows(self) -> int:
        # The small number keeps 0.07 * 100 = 7.000000000000001 and its like on the right side.
        return int(self.total * self.rate + 1e-9)
