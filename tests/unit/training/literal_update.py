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
            blocks = next(part for part in model.get_base_model().modules() if isinstance(part, nn.ModuleList))
            handles.append(blocks[layer].register_forward_hook(lambda _m, _i, out, one=one: shift(out, one)))
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


def log_1_minus_p(model: nn.Module, row: Encoded, delta: Tensor | None, layers: Sequence[str | int] = ()) -> list[Tensor]:
    """log(1 - p) of each response token: the logarithm of the sum of all other tokens' probabilities."""
    low, _ = row.response_span
    found = log_softmax_of_span(model, row, delta, layers)
    others = [torch.cat([line[: row.ids[low + i]], line[row.ids[low + i] + 1 :]]) for i, line in enumerate(found)]
    return [one.exp().sum().log() for one in others]


def mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum() / len(values)


def held(value: Tensor, cutoff: float | None, form: str) -> Tensor:
    if cutoff is None or value.item() >= cutoff:
        return value
    return torch.full_like(value, cutoff) if form == "clamp" else cutoff + 0.001 * value


def away_of(model: nn.Module, row: Encoded, delta: Tensor, cfg: TrainingConfig) -> Tensor:
    logs = token_logs(model, row, delta, cfg.attack.layers)
    if cfg.away == "neg_ce":
        return held(mean(logs), cfg.away_cutoff, cfg.cutoff_form)
    unlikely = log_1_minus_p(model, row, delta, cfg.attack.layers)
    floor = -math.inf if cfg.away_cutoff is None else cfg.away_cutoff
    return mean([-other if one >= floor else 0 * one for one, other in zip(logs, unlikely, strict=True)])


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
        loss = cfg.away_weight * away_of(model, row.harmful, delta, cfg) + cfg.toward_weight * toward
    return loss if cfg.loss_clip is None else torch.clamp(loss, -cfg.loss_clip, cfg.loss_clip)


def literal_retain(model: nn.Module, rows: Sequence[Encoded], cfg: TrainingConfig) -> Tensor:
    """The retain term: the mean over all tokens of all rows.

    Normalized as in LAT's public code: over tokens and vocabulary, divided by itself without gradient plus 1e-8.
    """
    elements = []
    for row in rows:
        low, high = row.response_span
        new = log_softmax_of_span(model, row, None)
        with torch.no_grad(), model.disable_adapter():
            old = log_softmax_of_span(model, row, None)
        elements.append(
            {
                "kl_forward": old.exp() * (old - new),
                "kl_reverse": new.exp() * (new - old),
                "ce": -new[range(high - low), row.ids[low:high]][:, None],
            }[cfg.retain_loss]
        )
    table = torch.cat(elements)
    if not cfg.retain_normalized:
        return table.sum() / len(table)
    assert cfg.retain_loss != "ce", "LAT normalizes a KL"
    term = table.sum() / (table.shape[0] * table.shape[1])
    return term / (term.item() + 1e-8)


def literal_attack_objective(model: nn.Module, row: HarmfulRow, delta: Tensor, cfg: TrainingConfig) -> Tensor:
    """What the attacker lowers for one row."""
    entropy = -mean(token_logs(model, row.harmful, delta, cfg.attack.layers))
    if cfg.attack.objective == "harmful_ce":
        return entropy
    if cfg.away == "neg_ce":
        pushed = mean(token_logs(model, row.refusal, delta, cfg.attack.layers))
    else:
        pushed = -mean(log_1_minus_p(model, row.refusal, delta, cfg.attack.layers))
    return cfg.away_weight * entropy + cfg.toward_weight * pushed
