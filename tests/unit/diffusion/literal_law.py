"""The denoising law written out for one row: Python loops and integers, the head on every position, no shared code."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

M64 = (1 << 64) - 1


def bits(*words: int) -> int:
    h = 0
    for word in words:
        z = ((h ^ (word & M64)) + 0x9E3779B97F4A7C15) & M64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
        h = z ^ (z >> 31)
    return h


def unit(*words: int) -> float:
    return ((bits(*words) >> 12) + 0.5) / 2**52


ROUNDING = 1e-5  # what two ways to the same log-confidence may differ by in float32


class Literal(NamedTuple):
    """The prompt's tokens, the sum of log-confidences, the forward passes, and whether rounding could change them."""

    tokens: list[int]
    logprob: float
    nfe: int
    undecided: bool


def key(rank: float, order: str, error: float = 0.0) -> float:
    return math.floor((math.log(rank) + error) * 256 + 0.5) if order == "low_confidence" else rank


def literal_infill(
    model,
    canvas: list[int],
    prompt: range,
    condition: range,
    *,
    seed: int,
    steps: int,
    tau: float,
    order: str,
    remask: bool,
    banned: list[int],
    mask: int,
    shift: int,
    pads: int = 3,
) -> Literal:
    z, K, L, total = list(canvas), len(prompt), len(canvas), 0.0
    undecided = False
    T = min(steps, K)
    for s in range(T):
        n = K // T + (1 if s < K % T else 0)
        seen = list(z)
        if remask:
            r = 1 + math.floor(unit(seed, s, 1) * L)
            for i in sorted(range(L), key=lambda i: unit(seed, s, 2, i))[:r]:
                if i in condition:
                    seen[i] = mask
        ids = torch.tensor([seen + [0] * pads])
        T_ = L + pads
        attend = torch.zeros(1, 1, T_, T_, dtype=torch.bool)
        attend[..., :L] = True
        logits = model(input_ids=ids, attention_mask=attend).logits[0].detach()
        candidates = []
        for i in prompt:
            if z[i] != mask:
                continue
            row = logits[i - shift]
            noisy = row.clone()
            if tau > 0:
                for v in range(len(row)):
                    w = ((bits(seed, s, 3, i, v) >> 11) + 0.5) / 2**53
                    noisy[v] = row[v] / tau - math.log(-math.log1p(-w))
            noisy[banned] = -math.inf
            token = int(noisy.argmax())
            confidence = float(row.softmax(0)[token])
            rank = confidence if order == "low_confidence" else unit(seed, s, 4, i)
            first, second = noisy.topk(2).values.tolist()
            undecided |= first - second < ROUNDING * max(1, abs(first))
            candidates.append((-key(rank, order), i, token, confidence, rank))
        candidates.sort()
        for _, i, _, _, mine in candidates[:n]:
            for _, j, _, _, other in candidates[n:]:
                low, high = key(mine, order, -ROUNDING), key(other, order, ROUNDING)
                tie = low == high and key(mine, order, ROUNDING) == key(other, order, -ROUNDING) and i < j
                undecided |= low <= high and not tie
        for _, i, token, confidence, _ in candidates[:n]:
            z[i] = token
            total += math.log(confidence)
    return Literal([z[i] for i in prompt], total, T, undecided)
