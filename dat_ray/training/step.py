"""One update, top to bottom: attack, away and toward, retain, reduce, clip, step.

Knows nothing of Ray: the workers' sum is a function that is passed in.

Shapes: B rows of this worker, T positions, D width, N response tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dat_ray.config.schema import TrainingConfig
from dat_ray.data.ids import row_id, seed_from_id
from dat_ray.errors import DatError
from dat_ray.models.chat import Encoded
from dat_ray.training import objectives
from dat_ray.training.attack import Perturbation, attack
from dat_ray.training.batches import HarmfulRow, collate
from dat_ray.training.network import Network

# Adds a tensor up over all workers, in place.
Reduce = Callable[[Tensor], None]

TERMS = ("away", "toward", "retain_kl", "loss")


class Diverged(DatError):
    """A loss or gradient that is not a number. Every worker sees the same, and no retry would mend it."""

    def __init__(self, update: int, term: str, value: float) -> None:
        super().__init__(
            f"training diverged: {term} is {value} at update {update}; the last checkpoint is kept; "
            "lower training.learning_rate or training.attack.step_size, or set training.away_cutoff"
        )
        self.update, self.term, self.value = update, term, value

    def __reduce__(self) -> tuple:
        return type(self), (self.update, self.term, self.value)


@dataclass(frozen=True)
class UpdateRows:
    """One worker's share of an update, with the counts of the whole.

    Attributes:
        harmful: this worker's harmful rows, possibly none.
        retain: this worker's retain rows, possibly none.
        harmful_count: harmful rows of the update over all workers.
        retain_tokens: retain response tokens of the update over all workers.
    """

    harmful: Sequence[HarmfulRow]
    retain: Sequence[Encoded]
    harmful_count: int
    retain_tokens: int


def alone(tensor: Tensor) -> None:
    """The `Reduce` of a single worker."""


def learning_rate(update: int, updates: int, cfg: TrainingConfig) -> float:
    """Linear warm-up, then half a cosine towards 0; a function of the update, so that nothing has to be restored."""
    warmup = math.ceil(cfg.warmup * updates)
    if update < warmup:
        return cfg.learning_rate * (update + 1) / warmup
    progress = (update - warmup) / max(updates - warmup, 1)
    return cfg.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(network: Network, cfg: TrainingConfig) -> torch.optim.AdamW:
    """AdamW on the adapter."""
    return torch.optim.AdamW(network.trainable().values(), lr=cfg.learning_rate, weight_decay=cfg.weight_decay)


def find_perturbation(network: Network, rows: Sequence[HarmfulRow], cfg: TrainingConfig, unit_norm: float) -> Perturbation:
    """Attacks the prompts of the rows so that the model as it is now gives their harmful responses.

    Args:
        network: attacked in evaluation mode.
        rows: at least one.
        cfg: its `attack` section.
        unit_norm: mean embedding norm.
    """
    batch = collate([row.harmful for row in rows], share_prefix=cfg.attack.positions == "user", device=network.device)
    with network.frozen():
        with torch.no_grad():
            prefix = network.prefix(batch)

        def row_entropies(delta: Tensor) -> Tensor:
            found = network.response_logits(batch, delta, prefix)
            return -objectives.row_means(objectives.token_logprobs(found.logits, found.targets), found.rows, len(rows))

        width = network.embedding.weight.shape[1]
        return attack(row_entropies, batch.positions(cfg.attack.positions), width, cfg.attack, unit_norm)


def harmful_losses(network: Network, rows: UpdateRows, delta: Tensor, cfg: TrainingConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Away and toward under the same perturbation, in one forward pass of 2B rows.

    Args:
        network: run as it stands.
        rows: `harmful` has B rows.
        delta: (B, T', D) of the attack, T' the longest harmful row.
        cfg: weights and cutoffs.

    Returns:
        This worker's share of the weighted loss; (B,) mean log p(y); (B,) mean log p(y_ref).
    """
    B = len(rows.harmful)
    both = [row.harmful for row in rows.harmful] + [row.refusal for row in rows.harmful]
    batch = collate(both, share_prefix=cfg.attack.positions == "user", device=network.device)
    longer = F.pad(delta, (0, 0, 0, batch.ids.shape[1] - delta.shape[1]))
    found = network.response_logits(batch, torch.cat([longer, longer]))
    logprobs = objectives.row_means(objectives.token_logprobs(found.logits, found.targets), found.rows, 2 * B)
    harmful, refusal = logprobs[:B], logprobs[B:]
    loss = cfg.away_weight * objectives.away_loss(harmful, cfg.away_cutoff, rows.harmful_count)
    loss = loss + cfg.toward_weight * objectives.toward_loss(refusal, cfg.toward_cutoff, rows.harmful_count)
    return loss, harmful.detach(), refusal.detach()


def retain_losses(network: Network, rows: UpdateRows, cfg: TrainingConfig) -> tuple[Tensor, Tensor]:
    """The retain term, against the same weights with the adapter off.

    Returns:
        This worker's share of the weighted loss; (N,) KL at each token.
    """
    batch = collate(rows.retain, share_prefix=True, device=network.device)
    with torch.no_grad(), network.frozen(), network.model.disable_adapter():
        teacher = network.response_logits(batch).logits
    divergences = objectives.forward_kl(teacher, network.response_logits(batch).logits)
    return cfg.retain_weight * objectives.retain_loss(divergences, rows.retain_tokens), divergences.detach()


def accumulate(network: Network, rows: UpdateRows, cfg: TrainingConfig, unit_norm: float) -> tuple[Tensor, dict[str, float]]:
    """Attacks, and adds this worker's share of the gradient to `.grad`.

    Args:
        network: in training mode.
        rows: this worker's share.
        cfg: what to compute.
        unit_norm: mean embedding norm.

    Returns:
        (4 + 2 * steps,) float64, whose sum over workers holds the update's TERMS, then the harmful cross-entropy
        before each attack step, then the relative norm of the perturbation after each; and seconds by part.
    """
    away = toward = kl = loss = 0.0
    trace = [0.0] * (2 * cfg.attack.steps)
    seconds = {}
    began = time.perf_counter()
    if rows.harmful:
        found = find_perturbation(network, rows.harmful, cfg, unit_norm)
        share = len(rows.harmful) / rows.harmful_count
        trace = [share * value for value in found.harmful_ce + found.relative_norm]
        seconds["attack"] = time.perf_counter() - began
        term, harmful, refusal = harmful_losses(network, rows, found.delta, cfg)
        term.backward()
        away, toward = (values.double().sum().item() / rows.harmful_count for values in (harmful, -refusal))
        loss += term.item()
        seconds["harmful"] = time.perf_counter() - began - sum(seconds.values())
    if rows.retain and cfg.retain_weight > 0:
        term, divergences = retain_losses(network, rows, cfg)
        term.backward()
        kl = divergences.double().sum().item() / rows.retain_tokens
        loss += term.item()
        seconds["retain"] = time.perf_counter() - began - sum(seconds.values())
    return torch.tensor([away, toward, kl, loss, *trace], dtype=torch.float64, device=network.device), seconds


def take_update(
    network: Network,
    optimizer: torch.optim.Optimizer,
    rows: UpdateRows,
    cfg: TrainingConfig,
    *,
    update: int,
    updates: int,
    unit_norm: float,
    seed: int,
    rank: int = 0,
    reduce: Reduce = alone,
) -> dict[str, Any]:
    """One update of the adapter.

    Args:
        network: changed in place.
        optimizer: of `make_optimizer`.
        rows: this worker's share.
        cfg: losses, attack, clipping, schedule.
        update: number of this update, from 0.
        updates: how many there will be.
        unit_norm: mean embedding norm.
        seed: of the run.
        rank: of this worker; dropout differs between workers.
        reduce: sum over workers.

    Returns:
        The update's metrics, equal on every worker but for the seconds.

    Raises:
        Diverged: a term or the gradient is not finite; the weights are as they were.
    """
    began = time.perf_counter()
    # Dropout is the only random number here; its seed is a function of the update, so that no state is restored.
    torch.manual_seed(seed_from_id(row_id("update", seed, update, rank)))
    network.model.train()
    optimizer.zero_grad(set_to_none=True)
    sums, seconds = accumulate(network, rows, cfg, unit_norm)
    parameters = list(network.trainable().values())
    reduce_gradients(parameters, reduce)
    reduce(sums)
    terms, trace = sums[: len(TERMS)].tolist(), sums[len(TERMS) :].tolist()
    for name, value in zip(TERMS, terms, strict=True):
        if not math.isfinite(value):
            raise Diverged(update, name, value)
    norm = torch.nn.utils.clip_grad_norm_(parameters, cfg.max_grad_norm).item()
    if not math.isfinite(norm):
        raise Diverged(update, "gradient norm", norm)
    rate = learning_rate(update, updates, cfg)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return {
        "update": update,
        **dict(zip(TERMS, terms, strict=True)),
        "attack_ce": [*trace[: cfg.attack.steps], -terms[0]],
        "attack_norm": trace[cfg.attack.steps :],
        "gradient_norm": norm,
        "learning_rate": rate,
        "seconds": time.perf_counter() - began,
        "seconds_by_part": seconds,
    }


def reduce_gradients(parameters: Sequence[torch.nn.Parameter], reduce: Reduce) -> None:
    """Sums the gradients over workers in one message; a worker without rows takes part with zeros."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    reduce(flat)
    for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = piece.view_as(parameter).clone()
