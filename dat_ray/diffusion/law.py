"""The denoising law: which tokens a masked prompt turns into, given the model's logits.

One implementation for every backend. Inputs are plain tensors; each row carries its own seed, step and quota, so rows
of one call may be at different steps, and a result depends neither on the batch nor on its order.

The law is that of the in-painting attack (arXiv 2511.00203, reference algorithm): for each step s of T,
  a. hide r ~ U{1..L} of the L canvas positions, of which those of the condition become MASK for this step only;
  b. logits of the canvas, with bidirectional attention;
  c. x = argmax(logits / tau + G), G standard Gumbel, over the tokens that are not banned (tau = 0: no noise);
  d. confidence c = softmax(logits)[x], without noise or temperature, banned tokens included in the normalizer;
  e. commit the n_s masked positions with the highest c. A committed token is final.
It differs from the reference in three places, where that depends on accidents: tau really tempers the logits (there any
tau > 0 acts as 1), padding is never part of the condition, and equal confidences are told apart by position, not by
rounding (`TIE`).

Shapes: B rows, T canvas positions, M masked prompt positions of all rows, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dat_ray.diffusion.counter import gumbel, integer_below, uniform

# Confidences that agree to this many nats are a tie, which the left position wins. Where a step hides the whole
# condition, every mask of the "answer" layout sees the same canvas: their confidences are equal but for rounding, which
# differs with the batch.
TIE = 2.0**-8

# What a random number is for; part of the hash, and of the sampler's identity: changing one changes every sample.
_HIDDEN_COUNT, _HIDDEN_RANK, _GUMBEL, _ORDER = 1, 2, 3, 4


@dataclass(frozen=True)
class Law:
    """Parameters of the law.

    Attributes:
        steps: T, denoising steps of a row with at least that many masks; a row never takes more than its masks.
        temperature: tau of the token draw; 0 takes the most probable token.
        order: commit the most confident positions first, or positions in random order.
        remask_condition: step a; at temperature 0 it is the only source of diversity.
    """

    steps: int
    temperature: float = 0.0
    order: Literal["low_confidence", "random"] = "low_confidence"
    remask_condition: bool = True


@dataclass(frozen=True)
class Committed:
    """Tokens that a step made final, ordered by row, then by position.

    Attributes:
        rows, positions, tokens: (N,) int64.
        logprobs: (N,) float32, natural logarithm of the confidence.
    """

    rows: Tensor
    positions: Tensor
    tokens: Tensor
    logprobs: Tensor


def transfer_schedule(masks: int, steps: int) -> list[int]:
    """Tokens to commit at each step: as equal as possible, the remainder first.

    Args:
        masks: K >= 1.
        steps: T >= 1; at most K steps are taken, so that each commits at least one token.

    Returns:
        min(T, K) positive integers that sum to K.
    """
    assert min(masks, steps) >= 1, (masks, steps)
    steps = min(steps, masks)
    quotient, remainder = divmod(masks, steps)
    return [quotient + (step < remainder) for step in range(steps)]


def hide_condition(ids: Tensor, valid: Tensor, condition: Tensor, seeds: Tensor, steps: Tensor, mask_token_id: int) -> Tensor:
    """Step a: a copy of the canvases in which a random part of the condition is MASK.

    The r positions of a row are those with the r smallest draws, which makes them a uniform subset of size r.

    Args:
        ids: (B, T) int64, padded on the right.
        valid: (B, T) bool, False at padding; L is a row's count of True.
        condition: (B, T) bool, True where a token may be hidden.
        seeds, steps: (B,) int64.
        mask_token_id: id of MASK.

    Returns:
        (B, T) int64.
    """
    lengths = valid.sum(1)
    r = 1 + integer_below(lengths, seeds, steps, _HIDDEN_COUNT)
    positions = torch.arange(ids.shape[1], device=ids.device)
    draws = uniform(seeds[:, None], steps[:, None], _HIDDEN_RANK, positions[None])
    rank = draws.masked_fill(~valid, 2.0).argsort(1).argsort(1)
    return ids.masked_fill(condition & (rank < r[:, None]), mask_token_id)


def propose(
    logits: Tensor, temperature: float, seeds: Tensor, steps: Tensor, positions: Tensor, banned: Tensor
) -> tuple[Tensor, Tensor]:
    """Steps c and d: a token for every masked position, and how sure the model is of it.

    Args:
        logits: (M, V), any floating type; computed with in float32.
        temperature: tau.
        seeds, steps, positions: (M,) int64, of each masked position; they and the token's id key the Gumbel noise.
        banned: (N,) int64 ids that are never taken.

    Returns:
        tokens (M,) int64 and log-confidences (M,) float32, nats.
    """
    logits = logits.float()
    scores = logits.index_fill(1, banned, -torch.inf)
    if temperature > 0:
        vocabulary = torch.arange(logits.shape[1], device=logits.device)
        noise = gumbel(seeds[:, None], steps[:, None], _GUMBEL, positions[:, None], vocabulary[None])
        scores = scores.div_(temperature).add_(noise)
    tokens = scores.argmax(1)
    picked = logits.gather(1, tokens[:, None])[:, 0]
    return tokens, picked - logits.logsumexp(1)


def choose(rows: Tensor, positions: Tensor, priority: Tensor, quotas: Tensor) -> Tensor:
    """Step e: for each row the masked positions with the highest priority, the left one of equals.

    Args:
        rows, positions: (M,) int64, which mask this is.
        priority: (M,) float.
        quotas: (B,) int64, how many to take in each row; a row with fewer masks gives all.

    Returns:
        Indices into the M masks, ordered by row, then by position.
    """
    order = positions.argsort(stable=True)
    order = order[priority[order].argsort(descending=True, stable=True)]
    order = order[rows[order].argsort(stable=True)]
    sorted_rows = rows[order]
    first = torch.searchsorted(sorted_rows, sorted_rows)  # where each mask's row begins
    rank = torch.arange(len(order), device=rows.device) - first
    chosen = order[rank < quotas[sorted_rows]]
    chosen = chosen[positions[chosen].argsort(stable=True)]
    return chosen[rows[chosen].argsort(stable=True)]


@torch.no_grad()
def denoise_step(
    states: Tensor,
    head: Callable[[Tensor], Tensor],
    rows: Tensor,
    positions: Tensor,
    seeds: Tensor,
    steps: Tensor,
    quotas: Tensor,
    law: Law,
    banned_token_ids: Sequence[int],
    chunk: int = 128,
) -> Committed:
    """Steps c to e for a batch: from the states that predict masked tokens to the tokens that are committed.

    Args:
        states: (M, D) hidden states that predict the masked prompt positions, and only those.
        head: maps (m, D) states to (m, V) logits; called on `chunk` states at a time, so (M, V) is never held.
        rows, positions: (M,) int64, the row (0..B-1) and canvas position of each.
        seeds, steps, quotas: (B,) int64, of each row: its seed, its step from 0, and how many tokens to commit.
        law: parameters.
        banned_token_ids: ids that are never taken.
        chunk: states of one call of `head`; no result depends on it but for rounding.
    """
    banned = torch.tensor(sorted(banned_token_ids), dtype=torch.int64, device=states.device)
    parts = []
    for lo in range(0, len(states), chunk):
        part = slice(lo, lo + chunk)
        row = rows[part]
        parts.append(propose(head(states[part]), law.temperature, seeds[row], steps[row], positions[part], banned))
    tokens, logprobs = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    priority = (logprobs / TIE).round() if law.order == "low_confidence" else uniform(seeds[rows], steps[rows], _ORDER, positions)
    chosen = choose(rows, positions, priority, quotas)
    return Committed(rows[chosen], positions[chosen], tokens[chosen], logprobs[chosen])
