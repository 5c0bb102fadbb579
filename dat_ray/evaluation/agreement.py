"""How far two readers of the same texts agree."""

from __future__ import annotations

from collections.abc import Sequence


def cohen_kappa(first: Sequence[bool], second: Sequence[bool]) -> float | None:
    """Agreement beyond chance (Cohen 1960, Educ. Psychol. Meas. 20:37); None where chance alone would agree always.

    Args:
        first: one reader's verdicts.
        second: the other's, in the same order.
    """
    n = len(first)
    if n == 0:
        return None
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    yes_one, yes_two = sum(first) / n, sum(second) / n
    chance = yes_one * yes_two + (1 - yes_one) * (1 - yes_two)
    return None if chance == 1.0 else (observed - chance) / (1 - chance)
