"""The masked-diffusion loss of a prompt given its response, and its held-out counterpart.

Shapes: B rows, T canvas positions, M masked prompt tokens, D width, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dat_ray.diffusion.backbone import hidden_states, output_head, pad_rows
from dat_ray.diffusion.counter import uniform
from dat_ray.diffusion.pairs import EncodedPair, other_responses

# Streams of the counter-based random numbers: one for each thing that is drawn.
_RATE, _PROMPT, _RESPONSE_ROW, _RESPONSE_RATE, _RESPONSE, _CUT_ROW, _CUT, _ORDER = range(201, 209)
_LEAST_RATE = 1e-3


@dataclass(frozen=True)
class MaskedBatch:
    """Corrupted canvases and what to predict.

    Attributes:
        ids: (B, T) int64, masks in place, padded on the right.
        valid: (B, T) bool, False at padding.
        rows, positions: (M,) int64, where the prompt is masked.
        labels: (M,) int64, the tokens that were there.
        weights: (M,) float32, weights of the cross-entropies; the loss is their weighted sum.
    """

    ids: Tensor
    valid: Tensor
    rows: Tensor
    positions: Tensor
    labels: Tensor
    weights: Tensor


def corrupt(
    pairs: Sequence[EncodedPair],
    seed: int,
    step: int,
    mask_token_id: int,
    response_mask_share: float = 0.5,
    response_cut_share: float = 0.0,
    loss_weight: Literal["mean", "inverse_rate"] = "mean",
) -> MaskedBatch:
    """Masks a batch for one training step; everything drawn is a function of (seed, step, row in the batch).

    Each prompt token is masked independently at its row's rate t, the token with the smallest draw always, so that
    every row teaches something. The rates are stratified over the batch, ``t_b = (u + b') / B`` with b' a permutation
    of the rows: each is uniform on (0, 1), and together they cover it, which lowers the variance of the loss.

    Args:
        pairs: clean canvases.
        seed, step: of the run; step from 0.
        mask_token_id: id of MASK.
        response_mask_share: share of rows whose response is masked at a rate of U(0,1); it is not predicted.
        response_cut_share: share of rows whose response is cut to a uniformly drawn length.
        loss_weight: ``mean``, 1/M for every token, or ``inverse_rate``, 1/(B * prompt length * max(t, 0.001)), 0 for a
            forced mask: LLaDA's bound on the negative log-likelihood of a prompt, a token, but for t below 0.001, whose
            weight is that of 0.001.
    """
    B = len(pairs)
    b = torch.arange(B)
    t = (torch.argsort(uniform(seed, step, _ORDER, b)) + uniform(seed, step, _RATE, b)) / B
    response_rate = uniform(seed, step, _RESPONSE_RATE, b)
    masks_response = uniform(seed, step, _RESPONSE_ROW, b) < response_mask_share
    cuts_response = uniform(seed, step, _CUT_ROW, b) < response_cut_share
    cut_draw = uniform(seed, step, _CUT, b)

    at = torch.arange(max(len(pair.ids) for pair in pairs))
    draws = uniform(seed, step, _PROMPT, b[:, None], at)
    is_prompt = _inside([pair.prompt_span for pair in pairs], at)
    draws = draws.masked_fill(~is_prompt, 2.0)
    masked = is_prompt & ((draws < t[:, None]) | (draws == draws.amin(1, keepdim=True)))
    hidden = uniform(seed, step, _RESPONSE, b[:, None], at) < response_rate[:, None]
    hidden &= _inside([pair.response_span for pair in pairs], at) & masks_response[:, None]
    # Lists from here on: asking tensors one number at a time would take longer than a step on a GPU.
    forced, to_mask, to_hide = (draws >= t[:, None]).tolist(), masked.tolist(), hidden.tolist()

    canvases, rows, positions, labels, weights = [], [], [], [], []
    for i, pair in enumerate(pairs):
        canvas = list(pair.ids)
        lo, hi = pair.prompt_span
        start, end = pair.response_span
        if cuts_response[i]:
            end = start + 1 + int(cut_draw[i] * (end - start))
            canvas = canvas[:end]
        weight = 1.0 / (B * (hi - lo) * max(float(t[i]), _LEAST_RATE))
        for position in itertools.compress(range(lo, hi), to_mask[i][lo:hi]):
            labels.append(canvas[position])
            canvas[position] = mask_token_id
            rows.append(i)
            positions.append(position)
            # A forced mask is none of the process's own, and would bias the bound.
            weights.append(0.0 if forced[i][position] else weight)
        for position in itertools.compress(range(start, end), to_hide[i][start:end]):
            canvas[position] = mask_token_id
        canvases.append(canvas)
    if loss_weight == "mean":
        weights = [1.0 / len(labels)] * len(labels)
    ids, valid = pad_rows(canvases, mask_token_id)
    return MaskedBatch(ids, valid, torch.tensor(rows), torch.tensor(positions), torch.tensor(labels), torch.tensor(weights))


def _inside(spans: Sequence[tuple[int, int]], at: Tensor) -> Tensor:
    """(B, T) bool: the positions of each row's half-open span."""
    low, high = torch.tensor(spans).unbind(1)
    return (at >= low[:, None]) & (at < high[:, None])


def share_of(batch: MaskedBatch, rank: int, world: int) -> MaskedBatch:
    """Every `world`-th row from `rank` on. The weights stay those of the whole batch, so that shares' losses add up to it."""
    mine = torch.arange(len(batch.ids)) % world == rank
    kept = mine[batch.rows]
    number = mine.cumsum(0) - 1
    return MaskedBatch(
        batch.ids[mine],
        batch.valid[mine],
        number[batch.rows[kept]],
        batch.positions[kept],
        batch.labels[kept],
        batch.weights[kept],
    )


def prompt_hidden_states(model: nn.Module, batch: MaskedBatch) -> Tensor:
    """(M, D) states that predict the masked tokens: with the next-token shift, those one position to the left."""
    device = next(model.parameters()).device
    hidden = hidden_states(model, batch.ids.to(device), batch.valid.to(device))
    return hidden[batch.rows.to(device), batch.positions.to(device) - 1]


def loss_and_backward(model: nn.Module, batch: MaskedBatch, chunk: int) -> float:
    """Adds the gradient of the batch's loss to the trainable parameters and returns the loss in nats.

    The head is applied to masked positions only, `chunk` at a time: each chunk's graph is freed once its gradients with
    respect to the hidden states and to the head's own parameters are known, so no (M, V) logits are ever held. A head that
    is tied to the embedding gets its share here, and the embedding's when the states are differentiated.
    """
    states = prompt_hidden_states(model, batch)
    head = output_head(model)
    labels, weights = batch.labels.to(states.device), batch.weights.to(states.device)
    loss, gradients = 0.0, []
    for lo in range(0, len(states), chunk):
        part = states[lo : lo + chunk].detach().requires_grad_()
        losses = F.cross_entropy(head(part).float(), labels[lo : lo + chunk], reduction="none")
        total = (losses * weights[lo : lo + chunk]).sum()
        total.backward()
        assert part.grad is not None
        gradients.append(part.grad)
        loss += float(total.detach())
    states.backward(torch.cat(gradients))
    return loss


def fully_masked(pairs: Sequence[EncodedPair], mask_token_id: int) -> MaskedBatch:
    """A batch with the whole prompt masked and the response in full view; weights are 1."""
    canvases: list[list[int]] = []
    rows: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    for i, pair in enumerate(pairs):
        lo, hi = pair.prompt_span
        canvases.append([*pair.ids[:lo], *[mask_token_id] * (hi - lo), *pair.ids[hi:]])
        rows += [i] * (hi - lo)
        positions += range(lo, hi)
        labels += pair.prompt
    ids, valid = pad_rows(canvases, mask_token_id)
    return MaskedBatch(ids, valid, torch.tensor(rows), torch.tensor(positions), torch.tensor(labels), torch.ones(len(labels)))


@torch.no_grad()
def prompt_cross_entropy(
    model: nn.Module, pairs: Sequence[EncodedPair], mask_token_id: int, batch_size: int = 16, chunk: int = 128
) -> Tensor:
    """Cross-entropy of each prompt when all of it is masked, summed over its tokens.

    Returns:
        (rows,) float64, nats, in the order of `pairs`.
    """
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].ids))
    head = output_head(model)
    result = torch.zeros(len(pairs), dtype=torch.float64)
    for lo in range(0, len(order), batch_size):
        members = order[lo : lo + batch_size]
        batch = fully_masked([pairs[i] for i in members], mask_token_id)
        states = prompt_hidden_states(model, batch)
        labels = batch.labels.to(states.device)
        losses = [
            F.cross_entropy(head(states[k : k + chunk]).float(), labels[k : k + chunk], reduction="none").double().cpu()
            for k in range(0, len(states), chunk)
        ]
        result.index_add_(0, torch.tensor(members)[batch.rows], torch.cat(losses))
    return result


@dataclass(frozen=True)
class ConditionalGain:
    """How much a prompt's own response helps to predict it, held out.

    Attributes:
        own: cross-entropy of a fully masked prompt given its own response, nats a token over all rows.
        other: the same given another row's response.
        gain: ``other - own``; positive when the model uses the response.
        low, high: 95 % interval of `gain` (paired by row; normal, for the ratio of sums).
        own_rows, other_rows: summed cross-entropy of each row, nats.
        tokens: prompt tokens of each row.
    """

    own: float
    other: float
    gain: float
    low: float
    high: float
    own_rows: tuple[float, ...]
    other_rows: tuple[float, ...]
    tokens: tuple[int, ...]


def conditional_gain(
    model: nn.Module, pairs: Sequence[EncodedPair], mask_token_id: int, batch_size: int = 16, chunk: int = 128
) -> ConditionalGain:
    """Measures `ConditionalGain` on clean canvases, with dropout off; the model's mode is restored.

    Args:
        model: the adapted model.
        pairs: held-out canvases, at least two different ones.
        mask_token_id: id of MASK.
        batch_size, chunk: rows of a forward pass, and masked positions of a pass through the head.
    """
    was_training = model.training
    model.eval()
    own = prompt_cross_entropy(model, pairs, mask_token_id, batch_size, chunk)
    other = prompt_cross_entropy(model, other_responses(pairs), mask_token_id, batch_size, chunk)
    model.train(was_training)
    tokens = torch.tensor([len(pair.prompt) for pair in pairs], dtype=torch.float64)
    total, n = float(tokens.sum()), len(pairs)
    gain = float((other - own).sum()) / total
    # Variance of a ratio of sums, linearized around the ratio; rows are the independent units.
    residual = (other - own) - gain * tokens
    error = math.sqrt(float((residual**2).sum()) * n / (n - 1)) / total
    return ConditionalGain(
        own=float(own.sum()) / total,
        other=float(other.sum()) / total,
        gain=gain,
        low=gain - 1.959964 * error,
        high=gain + 1.959964 * error,
        own_rows=tuple(own.tolist()),
        other_rows=tuple(other.tolist()),
        tokens=tuple(len(pair.prompt) for pair in pairs),
    )
