"""Counter-based random numbers: an integer hash of (seed, step, position, ...) gives each draw.

No generator state exists, so a draw depends on what it is for and on nothing else: not on the batch,
the order of rows, the backend or the number of workers. The integer part is exact on every device.

The hash chains the finalizer of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom
number generators"): ``h <- mix((h ^ word) + golden)`` for every word.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK_64 = (1 << 64) - 1


def _signed(value: int) -> int:
    """The two's-complement int64 of an unsigned 64-bit constant (torch multiplies int64 modulo 2**64)."""
    value &= _MASK_64
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's ``>>`` keeps the sign of an int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _FIRST
    x = (x ^ _shift_right(x, 27)) * _SECOND
    return x ^ _shift_right(x, 31)


def hash_words(*words: Tensor | int) -> Tensor:
    """Hashes words that broadcast against each other.

    Put the word with the largest shape last: a round costs as much as the shape it has reached.

    Args:
        words: int64 tensors or Python integers (at least one tensor); integers are taken modulo 2**64.

    Returns:
        int64 tensor of the broadcast shape, uniform over all 64-bit patterns.
    """
    device = next(word.device for word in words if isinstance(word, Tensor))
    h = torch.zeros((), dtype=torch.int64, device=device)
    for word in words:
        value = word if isinstance(word, Tensor) else torch.tensor(_signed(word), dtype=torch.int64, device=device)
        h = _mix((h ^ value) + _GOLDEN)
    return h


def uniform(*words: Tensor | int) -> Tensor:
    """Uniform draws of (0, 1), float64, one for every combination of words (see `hash_words`)."""
    # 52 bits plus one half need 53 bits: exact in float64, never 0 and never 1.
    return (_shift_right(hash_words(*words), 12).double() + 0.5) * 2.0**-52


def gumbel(*words: Tensor | int) -> Tensor:
    """Standard Gumbel draws, float32, one for every combination of words (see `hash_words`).

    Computed as ``-log(-log1p(-w))`` with w uniform: large values come from w near 0, where float32 is fine-grained,
    so that the upper tail, which decides an argmax over a vocabulary, reaches 36 instead of 16.
    """
    w = _shift_right(hash_words(*words), 11).float().add_(0.5).mul_(2.0**-53)
    return w.clamp_(max=1.0 - 2.0**-24).neg_().log1p_().neg_().log_().neg_()


def integer_below(bound: Tensor, *words: Tensor | int) -> Tensor:
    """Uniform integers of {0, ..., bound-1}, int64; `bound` (at least 1) broadcasts against the words."""
    return (uniform(*words) * bound).long()


def seed_from(*words: int) -> int:
    """A non-negative 63-bit seed for a library generator, hashed from integers."""
    return int(hash_words(torch.zeros((), dtype=torch.int64), *words)) & ((1 << 63) - 1)
