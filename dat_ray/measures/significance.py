"""Whether a paired difference can be told from chance, and what many such tests leave of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

# Up to so many behaviors every assignment of signs is counted, and beyond it this many are drawn.
EXACT_SIGNS = 12
SIGN_DRAWS = 9_999
# Sums of the same numbers in another order differ by less.
ROUNDING = 1e-9


def mcnemar(first: Mapping[str, bool], second: Mapping[str, bool]) -> float | None:
    """p of McNemar's exact two-sided test (1947, Psychometrika 12:153) over the behaviors that both have; None without any.

    Of the behaviors on which the two differ each side is as likely, if nothing but chance tells them apart.
    """
    shared = first.keys() & second.keys()
    if not shared:
        return None
    only_first = sum(first[key] and not second[key] for key in shared)
    only_second = sum(second[key] and not first[key] for key in shared)
    differing = only_first + only_second
    tail: int = sum(math.comb(differing, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / (1 << differing))


def sign_flip(first: Mapping[str, float], second: Mapping[str, float], *, seed: int = 0) -> float | None:
    """p of the two-sided test that flips signs of paired differences (Fisher 1935, The Design of Experiments, 21).

    Without a difference between the two, each behavior's may as well have the other sign: p is the share of all
    assignments of signs whose mean is as far from zero as the one seen.

    Args:
        first, second: behavior id to value; those that both have are used.
        seed: of the signs that are drawn where there are too many to count.

    Returns:
        None where they share no behavior.
    """
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    differences = np.array([second[key] - first[key] for key in shared])
    seen = abs(float(differences.sum())) - ROUNDING
    if len(shared) <= EXACT_SIGNS:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(shared))))
        return float((np.abs(signs @ differences) >= seen).mean())
    drawn = np.random.default_rng(seed).integers(0, 2, size=(SIGN_DRAWS, len(shared)), dtype=np.int8)
    sums = (2.0 * drawn - 1.0) @ differences
    # The assignment that was seen is one of them (Phipson and Smyth 2010, SAGMB 9:39).
    return (int((np.abs(sums) >= seen).sum()) + 1) / (SIGN_DRAWS + 1)


def holm(values: Sequence[float]) -> list[float]:
    """Adjusted p of each test of a family (Holm 1979, Scand. J. Stat. 6:65): those up to alpha may all be believed at alpha."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted
