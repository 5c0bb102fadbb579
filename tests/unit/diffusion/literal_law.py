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
GROUP = 256


class Literal(NamedTuple):
    """The prompt's tokens, the sum of log-confidences, the forward passes, and whether rounding could change them."""

    tokens: list[int]
    logprob: float
    nfe: int
    undecided: bool


def key(rank: float, order: str, error: float = 0.0) -> float:
    return math.floor((math.log(rank) + error) * 256 + 0.5) if order == "low_confidence" else rank


def noise(*words: int) -> float:
    return -math.log(-math.log1p(-((bits(*words) >> 11) + 0.5) / 2**53))


def best(scores: dict[int, float]) -> tuple[int, bool]:
    """The id of the highest score, and whether another one all but equals it."""
    first, *others = sorted(scores, key=scores.__getitem__, reverse=True)
    return first, bool(others) and scores[first] - scores[others[0]] < ROUNDING * max(1, abs(scores[first]))


def draw(row: torch.Tensor, tau: float, banned: list[int], *words: int) -> tuple[int, bool]:
    """One token: the most probable, or a Gumbel-max draw of its group of ids and then of itself."""
    seed, s, i = words
    if tau == 0:
        allowed_only = row.clone()
        allowed_only[banned] = -math.inf
        first, second = allowed_only.topk(2).values.tolist()
        return int(allowed_only.argmax()), first - second < ROUNDING * max(1, abs(first))
    allowed = [v for v in range(len(row)) if v not in banned]
    scores = {v: float(row[v]) / tau for v in allowed}
    masses = {
        g: math.log(sum(math.exp(scores[v]) for v in allowed if v // GROUP == g)) + noise(seed, s, 5, i, g)
        for g in {v // GROUP for v in allowed}
    }
    group, close = best(masses)
    token, closer = best({v: scores[v] + noise(seed, s, 3, i, v) for v in allowed if v // GROUP == group})
    return token, close or closer


def literal_infill(
    model,
    canvas: list[int],
    prompt: range,
    condition: range,
    *,
    seed: int,
    law,
    banned: list[int],
    mask: int,
    shift: int,
    pads: int = 3,
) -> Literal:
    z, K, L = list(canvas), len(prompt), len(canvas)
    T = law.steps if law.refine else min(law.steps, K)
    tau = law.temperature if law.tempered else float(law.temperature > 0)
    deadline, undecided, nfe = min(law.steps, K), False, 0
    score: dict[int, float] = {}

    def logits(seen: list[int]) -> torch.Tensor:
        attend = torch.zeros(1, 1, L + pads, L + pads, dtype=torch.bool)
        attend[..., :L] = True
        return model(input_ids=torch.tensor([seen + [0] * pads]), attention_mask=attend).logits[0].detach()

    for s in range(T):
        masked = [i for i in prompt if z[i] == mask]
        if not masked and law.refine:
            n = min(law.refine_tokens, K, T - s)
            if law.refine == "random":
                worst = sorted(prompt, key=lambda i: unit(seed, s, 6, i))
            else:
                worst = sorted(prompt, key=lambda i: (key(score[i], "low_confidence"), i))
                for i in worst[:n]:
                    for j in worst[n:]:
                        high, low = (key(score[k], "low_confidence", e) for k, e in ((i, ROUNDING), (j, -ROUNDING)))
                        same = key(score[i], "low_confidence", -ROUNDING) == key(score[j], "low_confidence", ROUNDING)
                        undecided |= high >= low and not (same and i < j)
            masked = sorted(worst[:n])
            for i in masked:
                z[i] = mask
            deadline = s + n
        if not masked:
            break
        seen = list(z)
        if law.remask_condition:
            r = 1 + math.floor(unit(seed, s, 1) * max(1, round(2 * law.remask_share * L)))
            for i in sorted(range(L), key=lambda i: unit(seed, s, 2, i))[:r]:
                if i in condition:
                    seen[i] = mask
        table = logits(seen)
        nfe += 1
        if law.guidance:
            free = logits([mask if i in condition else token for i, token in enumerate(z)])
            table = free + (law.guidance + 1) * (table - free)
            nfe += 1
        candidates = []
        for i in masked:
            p = table[i - shift].double().softmax(0)
            beside = [z[j] for j in (i - 1, i + 1) if law.no_repeats and j in prompt and z[j] != mask]
            token, close = draw(table[i - shift], tau, [*banned, *beside], seed, s, i)
            undecided |= close
            rank = float(p[token]) if law.order == "low_confidence" else unit(seed, s, 4, i)
            candidates.append((-key(rank, law.order), i, token, float(p[token]), rank, float(-(p * p.log()).sum())))
        candidates.sort()
        place = {c[1]: number for number, c in enumerate(candidates)}
        waiting = set()
        for _, i, token, _, mine, _ in candidates if law.no_repeats else ():
            for _, j, twin, _, other, _ in candidates:
                if abs(i - j) == 1 and token == twin:
                    if place[j] < place[i]:
                        waiting.add(i)
                    low, high = (key(mine, law.order, error) for error in (-ROUNDING, ROUNDING))
                    undecided |= (low, high) != (key(other, law.order, -ROUNDING), key(other, law.order, ROUNDING)) and (
                        low <= key(other, law.order, ROUNDING) and key(other, law.order, -ROUNDING) <= high
                    )
        candidates.sort(key=lambda c: (c[1] in waiting, place[c[1]]))
        n = -(-len(masked) // (deadline - s))
        if law.threshold is not None:
            n = max(n, sum(c[3] >= law.threshold and c[1] not in waiting for c in candidates))
            undecided |= any(abs(c[3] - law.threshold) < ROUNDING for c in candidates)
        if law.entropy_bound is not None:
            for k in range(1, len(candidates) + 1 - len(waiting)):
                entropies = [c[5] for c in candidates[:k]]
                excess = sum(entropies) - max(entropies) - law.entropy_bound
                undecided |= k > 1 and abs(excess) < 10 * ROUNDING
                if k > n and excess <= 1e-9:
                    n = k
        for _, i, _, _, mine, _ in candidates[:n]:
            for _, j, _, _, other, _ in candidates[n:]:
                if (i in waiting) != (j in waiting):
                    continue
                low, high = key(mine, law.order, -ROUNDING), key(other, law.order, ROUNDING)
                tie = low == high and key(mine, law.order, ROUNDING) == key(other, law.order, -ROUNDING) and i < j
                undecided |= low <= high and not tie
        if law.entropy_bound is not None:  # the list's order decides its length
            keys = [(key(c[4], law.order, -ROUNDING), key(c[4], law.order, ROUNDING)) for c in candidates]
            undecided |= any(low != high for low, high in keys)
        for _, i, token, confidence, _, _ in candidates[:n]:
            z[i] = token
            score[i] = confidence
    return Literal([z[i] for i in prompt], sum(math.log(score[i]) for i in prompt), nfe, undecided)
