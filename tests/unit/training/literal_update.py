"""One update of any recipe in its plainest form: a row at a time, no padding, no shared prefix, all logits.

Written from the papers' formulas, and shares no code with `dat_ray.training`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dat_ray.config.training import TrainingConfig
from dat_ray.models.chat import Encoded
from dat_ray.training.batches import HarmfulRow


def log_softmax_of_span(model: nn.Module, row: Encoded, delta: Tensor | None, layers: Sequence[str | int] = ()) -> Tensor:
    """(tokens, V): predictions of the response, with `delta` (L, T, D) added at `layers`."""

    def shift(values: Tensor, one: Tensor) -> Tensor:
        low, T = min(one.shape[0], values.shape[1]), values.shape[1]
        return values + nn.functional.pad(one[:low], (0, 0, 0, T - low))

    handles = []
    embeddings = model.get_input_embeddings()(torch.tensor([row.ids]))
    for layer, one in zip(layers, [] if delta is None else delta, strict=delta is not None):
        if layer == "embedding":
            embeddings = shift(embeddings, one)
        else:
            block = model.get_base_model().model.layers[layer]
            handles.append(block.register_forward_hook(lambda _m, _i, out, one=one: shift(out, one)))
    logits = model(inputs_embeds=embeddings, use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    low, high = row.response_span
    return logits[low - 1 : high - 1].log_softmax(-1)


def token_logs(model: nn.Module, row: Encoded, delta: Tensor | None, layers: Sequence[str | int] = ()) -> list[Tensor]:
    """log p of each response token."""
    low, _ = row.response_span
    found = log_softmax_of_span(model, row, delta, layers)
    return [line[row.ids[low + i]] for i, line in enumerate(found)]


def mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum() / len(values)


def held(value: Tensor, cutoff: float | None, form: str) -> Tensor:
    if cutoff is None or value.item() >= cutoff:
        return value
    return torch.full_like(value, cutoff) if form == "clamp" else cutoff + 0.001 * value


def away_of(logs: Sequence[Tensor], cfg: TrainingConfig) -> Tensor:
    if cfg.away == "neg_ce":
        return held(mean(logs), cfg.away_cutoff, cfg.cutoff_form)
    kept = [-(1 - one.exp()).log() if cfg.away_cutoff is None or one >= cfg.away_cutoff else 0 * one for one in logs]
    return mean(kept)


def literal_harmful(model: nn.Module, row: HarmfulRow, delta: Tensor, cfg: TrainingConfig) -> Tensor:
    """The loss of one harmful row under its perturbation (L, T, D)."""
    y = token_logs(model, row.harmful, delta, cfg.attack.layers)
    refusal = token_logs(model, row.refusal, delta, cfg.attack.layers)
    if cfg.away == "ipo":
        with torch.no_grad(), model.disable_adapter():
            reference = mean(token_logs(model, row.refusal, None)) - mean(token_logs(model, row.harmful, None))
        if cfg.away_cutoff is not None:
            y = [one if one >= cfg.away_cutoff else 0 * one for one in y]
        if cfg.toward_cutoff is not None:
            refusal = [one if one <= -cfg.toward_cutoff else 0 * one for one in refusal]
        loss = cfg.away_weight * (mean(refusal) - mean(y) - reference - 1 / (2 * cfg.ipo_beta)) ** 2
    else:
        toward = held(-mean(refusal), cfg.toward_cutoff, cfg.cutoff_form)
        loss = cfg.away_weight * away_of(y, cfg) + cfg.toward_weight * toward
    return loss if cfg.loss_clip is None else torch.clamp(loss, -cfg.loss_clip, cfg.loss_clip)


def literal_retain(model: nn.Module, rows: Sequence[Encoded], cfg: TrainingConfig) -> Tensor:
    """The retain term: the mean over all tokens of all rows."""
    values = []
    for row in rows:
        low, _ = row.response_span
        new = log_softmax_of_span(model, row, None)
        with torch.no_grad(), model.disable_adapter():
            old = log_softmax_of_span(model, row, None)
        for i, (p, q) in enumerate(zip(old, new, strict=True)):
            values.append(
                {
                    "kl_forward": lambda p=p, q=q: (p.exp() * (p - q)).sum(),
                    "kl_reverse": lambda p=p, q=q: (q.exp() * (q - p)).sum(),
                    "ce": lambda q=q, i=i, row=row, low=low: -q[row.ids[low + i]],
                }[cfg.retain_loss]()
            )
    term = mean(values)
    return term / term.item() if cfg.retain_normalized and not math.isclose(term.item(), 0.0) else term


def literal_attack_objective(model: nn.Module, row: HarmfulRow, delta: Tensor, cfg: TrainingConfig) -> Tensor:
    """What the attacker lowers for one row."""
    entropy = -mean(token_logs(model, row.harmful, delta, cfg.attack.layers))
    if cfg.attack.objective == "harmful_ce":
        return entropy
    refusal = token_logs(model, row.refusal, delta, cfg.attack.layers)
    pushed = mean(refusal) if cfg.away == "neg_ce" else mean([-(1 - one.exp()).log() for one in refusal])
    return cfg.away_weight * entropy + cfg.toward_weight * pushed
