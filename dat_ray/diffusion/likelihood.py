"""How likely a prompt is under a masked diffusion model, given its response: a Monte-Carlo bound with its error.

With n prompt tokens, l ~ U{1..n} and M a uniform set of l of them,

    log p(x | y)  >=  - E_l E_M  (n / l)  sum_{i in M} -log p(x_i | x outside M, y)

(LLaDA, arXiv 2502.09992, for a prompt instead of a response). The response is always in full view. l is stratified:
sample s of S draws it from the s-th of S equal parts, which leaves its law uniform and removes most of its variance. For a
prompt of one token nothing is random, and the bound is log p(x | y) itself.

Shapes: N tokens of all rows of a pass, M masked positions of them, D width, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dat_ray.diffusion.canvas import Canvas
from dat_ray.diffusion.counter import uniform

States = Callable[[Sequence[Sequence[int]]], Tensor]
"""Maps token rows of any lengths to their final hidden states (N, D), one row after the other without padding."""

# Streams of the counter-based random numbers.
_SIZE, _MEMBER = 301, 302


@dataclass(frozen=True)
class BoundEstimate:
    """An estimate of the bound.

    Attributes:
        value: nats, for the whole prompt.
        error: its standard error, from differences of neighboring strata (Wolter 2007, "Introduction to Variance
            Estimation", 8.2), which errs on the large side where strata differ; 0 for a prompt of one token.
        nfe: forward passes that it took.
    """

    value: float
    error: float
    nfe: int


def masked_positions(seed: int, sample: int, samples: int, span: tuple[int, int]) -> list[int]:
    """The set M of one sample, ascending; a function of its arguments alone.

    Args:
        seed: of the row.
        sample: s, from 0.
        samples: S.
        span: half-open, of the prompt in its canvas.
    """
    lo, hi = span
    u = (sample + float(uniform(torch.tensor(seed), sample, _SIZE))) / samples
    size = 1 + int(u * (hi - lo))
    draws = uniform(seed, sample, _MEMBER, torch.arange(lo, hi))
    return sorted((lo + draws.argsort()[:size]).tolist())


@dataclass(frozen=True)
class MaskedModel:
    """A masked diffusion model, in the pieces in which likelihoods use it.

    Attributes:
        mask_token_id, shift: of the sampler.
        states: the model's forward pass.
        head: maps (m, D) states to (m, V) logits; sees masked positions only, `chunk` at a time.
        batch_size: rows of a forward pass.
        chunk: states of one call of `head`.
    """

    mask_token_id: int
    shift: int
    states: States
    head: Callable[[Tensor], Tensor]
    batch_size: int
    chunk: int


@torch.no_grad()
def log_likelihood(model: MaskedModel, canvases: Sequence[Canvas], seeds: Sequence[int], samples: int) -> list[BoundEstimate]:
    """The bound for each written prompt; a row's estimate depends on nothing but the row.

    Args:
        model: the sampler's.
        canvases: with the prompt's tokens in place (see `written`).
        seeds: one a row.
        samples: S >= 2 forward passes a row, one for a prompt of one token.
    """
    assert samples >= 2, samples
    jobs = []  # (row, masked positions)
    for i, (canvas, seed) in enumerate(zip(canvases, seeds, strict=True)):
        lo, hi = canvas.prompt_span
        number = 1 if hi - lo == 1 else samples
        jobs += [(i, masked_positions(seed, s, number, (lo, hi))) for s in range(number)]
    terms: list[list[float]] = [[] for _ in canvases]
    # Longest first, so that rows of a pass are of nearly equal length; a row's samples stay in their order.
    jobs.sort(key=lambda job: -len(canvases[job[0]].ids))
    for start in range(0, len(jobs), model.batch_size):
        part = jobs[start : start + model.batch_size]
        sums = _cross_entropies(model, [(canvases[i], places) for i, places in part])
        for (i, places), total in zip(part, sums, strict=True):
            lo, hi = canvases[i].prompt_span
            terms[i].append(-(hi - lo) / len(places) * total)
    return [_estimate(values) for values in terms]


def written(canvas: Canvas, token_ids: Sequence[int]) -> Canvas:
    """A canvas with its prompt filled in."""
    lo, hi = canvas.prompt_span
    assert len(token_ids) == hi - lo, (len(token_ids), hi - lo)
    return Canvas((*canvas.ids[:lo], *token_ids, *canvas.ids[hi:]), canvas.prompt_span, canvas.condition_span)


def _cross_entropies(model: MaskedModel, rows: Sequence[tuple[Canvas, list[int]]]) -> list[float]:
    """Summed cross-entropy of the masked tokens of each row, nats."""
    seen, labels, picked, owner, offset = [], [], [], [], 0
    for row, (canvas, places) in enumerate(rows):
        ids = list(canvas.ids)
        for place in places:
            labels.append(ids[place])
            ids[place] = model.mask_token_id
            picked.append(offset + place - model.shift)
            owner.append(row)
        seen.append(ids)
        offset += len(ids)
    hidden = model.states(seen)
    hidden = hidden[torch.tensor(picked, device=hidden.device)]
    wanted = torch.tensor(labels, device=hidden.device)
    losses = []
    for lo in range(0, len(hidden), model.chunk):
        part = slice(lo, lo + model.chunk)
        logits = model.head(hidden[part]).float()
        losses.append(logits.logsumexp(1) - logits.gather(1, wanted[part, None])[:, 0])
    total = torch.zeros(len(rows), dtype=torch.float64)
    total.index_add_(0, torch.tensor(owner), torch.cat(losses).double().cpu())
    nats: list[float] = total.tolist()
    return nats


def _estimate(values: Sequence[float]) -> BoundEstimate:
    S = len(values)
    mean = math.fsum(values) / S
    if S == 1:
        return BoundEstimate(mean, 0.0, 1)
    squares = math.fsum((second - first) ** 2 for first, second in itertools.pairwise(values))
    # Each difference holds the variances of two strata; S of them are wanted, and S - 1 differences were had.
    variance_of_sum = squares / 2 * S / (S - 1)
    return BoundEstimate(mean, math.sqrt(variance_of_sum) / S, S)
