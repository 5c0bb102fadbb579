"""Whether two figures order things alike: Spearman's rank correlation, with an exact test for few things."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Of more things there are too many orders to go through.
MOST = 8
# Two correlations that rounding alone tells apart.
EQUAL = 1e-12


@dataclass(frozen=True)
class RankCorrelation:
    """How far two figures order the same things alike.

    Attributes:
        value: Spearman's, in [-1, 1]: Pearson's correlation of the ranks, things that are equal sharing theirs.
        p: two-sided, of no connection: the share of all orders in which it is as far from 0; None for more than `MOST` things.
        n: things.
    """

    value: float
    p: float | None
    n: int


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> RankCorrelation | None:
    """Spearman's rank correlation; None for fewer than three things, or where a figure is the same of all.

    Args:
        first, second: of the same things, in the same order.
    """
    if len(first) < 3:
        return None
    before, after = _centered_ranks(first), _centered_ranks(second)
    size = float(np.sqrt((before @ before) * (after @ after)))
    if size == 0.0:
        return None
    value = float(before @ after) / size
    if len(first) > MOST:
        return RankCorrelation(value, None, len(first))
    orders = after[np.array(list(itertools.permutations(range(len(first)))))]
    as_far = np.abs(orders @ before) / size >= abs(value) - EQUAL
    return RankCorrelation(value, float(as_far.mean()), len(first))


def _centered_ranks(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    smaller = (array[None, :] < array[:, None]).sum(axis=1)
    equal = (array[None, :] == array[:, None]).sum(axis=1)
    ranks = smaller + (equal - 1) / 2
    centered: np.ndarray = ranks - ranks.mean()
    return centered
