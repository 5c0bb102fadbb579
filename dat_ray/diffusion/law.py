"""The denoising law: which tokens a masked prompt turns into, given the model's logits.

A reader's way in is `published_law`: the whole law on one screen, as it is published, which the tests and `dat bench sampler`
compare this one with.

One implementation for every backend. Inputs are plain tensors; each row carries its own seed and step, so rows of one
call may be at different steps, and a result depends neither on the batch nor on its order. `dat_ray.diffusion.canvas_rows`
keeps the rows and takes the steps.

The law is that of the in-painting attack (arXiv 2511.00203, reference algorithm): for each step s of T,
  a. hide r ~ U{1..L} of the L canvas positions, of which those of the condition become MASK for this step only;
  b. logits of the canvas, with bidirectional attention;
  c. x ~ softmax(logits / tau) over the tokens that are not banned (tau = 0: the most probable one);
  d. confidence c = softmax(logits)[x], without temperature, banned tokens included in the normalizer;
  e. commit the n_s masked positions with the highest c. A committed token is final.
It differs from the reference in three places, where that depends on accidents: tau really tempers the logits (there any
tau > 0 acts as 1: `tempered=False`), padding is never part of the condition, and equal confidences are told apart by
position, not by rounding (`TIE`).

Options, all off by default:
  guidance w: logits = u + (w + 1)(c - u) in c to e, u from a second pass whose condition is all MASK (LLaDA, section 4.3);
  threshold p: commit every position of confidence at least p (Fast-dLLM);
  entropy_bound g: commit the longest list of most confident positions with sum(H) - max(H) <= g, H the entropy of a
    position in nats (Ben-Hamu et al. 2025, arXiv 2505.24857);
  refine: past the steps that fill a row, its T allowing, mask some tokens again and fill them anew (global re-masking);
  no_repeats: in c, a token that a neighbor has already is not drawn; in e, of masks side by side that drew the same token all
    but the best are ranked behind all others, and commit only where the even share asks for them. Ours: positions that commit
    in one step do not see each other, which is where most words that follow themselves come from.
Whatever the rule, a step commits at least the even share of what is left, so that a row is full within its T steps.

Shapes: B rows, N tokens of all rows, M masked prompt positions of all rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dat_ray.diffusion.counter import gumbel, integer_below, uniform

# Confidences that agree to this many nats are a tie, which the left position wins. Where a step hides the whole
# condition, every mask of the "answer" layout sees the same canvas: their confidences are equal but for rounding, which
# differs with the batch.
TIE = 2.0**-8
# A token is drawn in two moves, its group of this many ids, then itself: noise for V / 256 + 256 ids instead of V.
GROUP = 256

# What a random number is for; part of the hash, and of the sampler's identity: changing one changes every sample.
_HIDDEN_COUNT, _HIDDEN_RANK, _TOKEN, _ORDER, _GROUP_OF_TOKENS, _REFINED = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Law:
    """Parameters of the law.

    Attributes:
        steps: T, denoising steps that a row may take; without `refine` it takes no more than it has masks.
        temperature: tau of the token draw; 0 takes the most probable token.
        order: commit the most confident positions first, or positions in random order.
        remask_condition: step a; at temperature 0 it is the only source of diversity.
        remask_share: mean share of the condition that step a hides; 0.5 in the published law.
        tempered: False reproduces the reference code, in which every tau above 0 acts as 1.
        guidance: w of classifier-free guidance; 0 for none. Doubles the forward passes.
        threshold, entropy_bound: rules that commit several positions a step; None for none, at most one of them.
        refine: which tokens of a full row are masked again: random ones, or the least confident.
        refine_tokens: how many at once; they take as many steps.
        no_repeats: no token beside its like, as far as the steps allow.
    """

    steps: int
    temperature: float = 0.0
    order: Literal["low_confidence", "random"] = "low_confidence"
    remask_condition: bool = True
    remask_share: float = 0.5
    tempered: bool = True
    guidance: float = 0.0
    threshold: float | None = None
    entropy_bound: float | None = None
    refine: Literal["random", "low_confidence"] | None = None
    refine_tokens: int = 8
    no_repeats: bool = False

    @property
    def passes(self) -> int:
        """Forward passes of a step."""
        return 2 if self.guidance > 0 else 1

    def budget(self, masks: int) -> int:
        """Steps that a row of so many masks may take."""
        return self.steps if self.refine else min(self.steps, masks)


@dataclass(frozen=True)
class StepKeys:
    """What the random numbers of a step are derived from, besides a position.

    Attributes:
        seeds, steps: (B,) int64, of each row, or of each of N tokens.
    """

    seeds: Tensor
    steps: Tensor

    def at(self, index: Tensor) -> StepKeys:
        """Those of the rows that are named."""
        return StepKeys(self.seeds[index], self.steps[index])


@dataclass(frozen=True)
class Proposal:
    """What the model would put at masked positions.

    Attributes:
        tokens: (M,) int64.
        logprobs: (M,) float32, natural logarithm of the confidence.
        entropies: (M,) float32, nats, of softmax(logits); only under an entropy bound.
    """

    tokens: Tensor
    logprobs: Tensor
    entropies: Tensor | None = None


def ranks(keys: Tensor, rows: Tensor) -> Tensor:
    """Place of each key among those of its row, from 0, ascending; equal keys keep their order.

    Args:
        keys: (N,).
        rows: (N,) int64, ascending.
    """
    order = keys.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    first = torch.searchsorted(rows, rows)  # where each key's row begins
    rank = torch.empty_like(rows)
    rank[order] = torch.arange(len(rows), device=rows.device)
    return rank - first


def hide_condition(
    ids: Tensor, condition: Tensor, rows: Tensor, positions: Tensor, most: Tensor, keys: StepKeys, mask: int
) -> Tensor:
    """Step a: a copy of the canvases in which a random part of the condition is MASK.

    The r positions of a row are those with the r smallest draws, which makes them a uniform subset of size r.

    Args:
        ids: (N,) int64.
        condition: (N,) bool, True where a token may be hidden.
        rows, positions: (N,) int64, of each token; rows ascend.
        most: (B,) int64, the largest r of each row; in the published law its length L.
        keys: of each row.
        mask: id of MASK.

    Returns:
        (N,) int64.
    """
    r = 1 + integer_below(most, keys.seeds, keys.steps, _HIDDEN_COUNT)
    draws = uniform(keys.seeds[rows], keys.steps[rows], _HIDDEN_RANK, positions)
    return ids.masked_fill(condition & (ranks(draws, rows) < r[rows]), mask)


def to_refine(logprobs: Tensor, rows: Tensor, positions: Tensor, counts: Tensor, keys: StepKeys, law: Law) -> Tensor:
    """Which tokens of full rows are masked again.

    Args:
        logprobs: (N,) float32, at which each prompt token was committed.
        rows, positions: (N,) int64, of the prompt tokens; rows ascend, and positions in them.
        counts: (B,) int64, how many of each row's tokens to take.
        keys: of each row.
        law: its `refine` says which.

    Returns:
        (N,) bool.
    """
    random = law.refine == "random"
    order = uniform(keys.seeds[rows], keys.steps[rows], _REFINED, positions) if random else (logprobs / TIE).round()
    return ranks(order, rows) < counts[rows]


def propose(
    logits: Tensor, law: Law, keys: StepKeys, positions: Tensor, banned: Tensor, neighbors: Tensor | None = None
) -> Proposal:
    """Steps c and d: a token for every masked position, and how sure the model is of it.

    Args:
        logits: (M, V) float32; overwritten, to spare copies of the vocabulary's width.
        law: temperature and whether it tempers.
        keys: of the row of each masked position.
        positions: (M,) int64; with `keys` and token ids they key the noise.
        banned: (N,) int64 ids that are never taken.
        neighbors: (M, 2) int64, ids that are not taken beside each mask, MASK where there is none; None for no such rule.
    """
    banned_logits = logits.index_select(1, banned)
    entropies = _entropies(logits) if law.entropy_bound is not None else None
    logits.index_fill_(1, banned, -torch.inf)
    if neighbors is not None:
        beside = logits.gather(1, neighbors)
        logits.scatter_(1, neighbors, -torch.inf)
    if law.temperature > 0:
        tau = law.temperature if law.tempered else 1.0
        tokens = _draw(logits / tau if tau != 1.0 else logits, keys, positions)
    else:
        tokens = logits.argmax(1)
    if neighbors is not None:
        logits.scatter_(1, neighbors, beside)  # they are in the normalizer
    picked = logits.gather(1, tokens[:, None])[:, 0]
    normalizer = _logsumexp_(logits)
    if len(banned):
        normalizer = torch.logaddexp(normalizer, banned_logits.logsumexp(1))
    return Proposal(tokens, picked - normalizer, entropies)


def _draw(scores: Tensor, keys: StepKeys, positions: Tensor) -> Tensor:
    """One token of softmax(scores) for each row of (M, V): a group of ids by its mass, then an id of the group.

    Both moves are Gumbel-max draws. The result is exactly distributed, since P(token) = P(group) P(token | group), and
    as indifferent to rounding as one draw over the vocabulary: only scores that all but agree can change places.
    """
    M, V = scores.shape
    seeds, steps = keys.seeds[:, None], keys.steps[:, None]
    grouped = F.pad(scores, (0, -V % GROUP), value=-torch.inf).view(M, -1, GROUP)
    mass = grouped.logsumexp(2)
    groups = torch.arange(mass.shape[1], device=scores.device)
    group = (mass + gumbel(seeds, steps, _GROUP_OF_TOKENS, positions[:, None], groups[None])).argmax(1)
    ids = group[:, None] * GROUP + torch.arange(GROUP, device=scores.device)
    inside = grouped[torch.arange(M, device=scores.device), group]
    best = (inside + gumbel(seeds, steps, _TOKEN, positions[:, None], ids)).argmax(1)
    return ids.gather(1, best[:, None])[:, 0]


def _logsumexp_(logits: Tensor) -> Tensor:
    """Logarithm of the sum of exponentials of each row of (M, V); overwrites its argument."""
    top = logits.amax(1)
    return logits.sub_(top[:, None]).exp_().sum(1).log_().add_(top)


def _entropies(logits: Tensor) -> Tensor:
    """Entropy, nats, of softmax of each row of (M, V)."""
    logp = logits.log_softmax(1)
    return -(logp.exp() * logp).sum(1)


def choose(rows: Tensor, positions: Tensor, proposal: Proposal, least: Tensor, keys: StepKeys, law: Law) -> Tensor:
    """Step e: which masked positions commit, the left one of equals.

    Args:
        rows, positions: (M,) int64, which mask this is; rows ascend, and positions in them.
        proposal: of the masks.
        least: (B,) int64, how many each row commits at the least.
        keys: of each row.
        law: the rule.

    Returns:
        (M,) bool.
    """
    random = law.order == "random"
    order = -uniform(keys.seeds[rows], keys.steps[rows], _ORDER, positions) if random else -(proposal.logprobs / TIE).round()
    rank = ranks(order, rows)
    free = torch.ones_like(rows, dtype=torch.bool)
    if law.no_repeats:
        free = ~_repeats(proposal.tokens, rows, positions, rank)
        rank = ranks(rank + len(rows) * ~free, rows)
    count = least
    if law.threshold is not None:
        sure = free & (proposal.logprobs.double().exp() >= law.threshold)
        count = torch.maximum(least, torch.zeros_like(least).index_add_(0, rows, sure.long()))
    elif law.entropy_bound is not None:
        assert proposal.entropies is not None
        within = _within_bound(proposal.entropies, rows, rank, len(least), law.entropy_bound)
        unlike = torch.zeros_like(least).index_add_(0, rows, free.long())
        count = torch.maximum(least, torch.minimum(within, unlike))
    return rank < count[rows]


def _repeats(tokens: Tensor, rows: Tensor, positions: Tensor, rank: Tensor) -> Tensor:
    """(M,) bool: masks beside a mask of the same row that drew the same token, and is ranked before them."""
    pair = (rows[1:] == rows[:-1]) & (positions[1:] == positions[:-1] + 1) & (tokens[1:] == tokens[:-1])
    found = torch.zeros_like(rows, dtype=torch.bool)
    found[1:] |= pair & (rank[:-1] < rank[1:])
    found[:-1] |= pair & (rank[1:] < rank[:-1])
    return found


def _within_bound(entropies: Tensor, rows: Tensor, rank: Tensor, B: int, bound: float) -> Tensor:
    """For each row the longest list of its best masks with sum(H) - max(H) <= bound: (B,) int64.

    That difference never falls as the list grows, so the lists within the bound are the shortest ones.
    """
    first = torch.searchsorted(rows, rows)
    ordered = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    ordered[first + rank] = entropies.double()
    sums = ordered.cumsum(0)
    sums = sums - (sums - ordered)[first]
    # Entropies are under 64 nats: a row's number in front of them starts the maximum anew.
    largest = (ordered + 64.0 * rows).cummax(0).values - 64.0 * rows
    inside = sums - largest <= bound + 1e-9
    return torch.zeros(B, dtype=torch.int64, device=rows.device).index_add_(0, rows, inside.long())
