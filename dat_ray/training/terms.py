"""What an update is made of: the perturbation that is found, the terms on attacked prompts, the retain term.

Shapes: L perturbed layers, B rows of this worker that go through the model at once, T positions, N response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dat_ray.config.training import TrainingConfig
from dat_ray.models.chat import Encoded
from dat_ray.training import objectives
from dat_ray.training.attack import Perturbation, attack
from dat_ray.training.batches import Batch, HarmfulRow, collate
from dat_ray.training.network import Network, Prefix


@dataclass(frozen=True)
class PairLogprobs:
    """Log-probabilities, in nats, of both responses' tokens after the same prompts.

    Attributes:
        harmful: (N,) of the harmful responses.
        refusal: (N',) of the refusals.
        rows: the row of each, both numbered from 0.
        count: B.
        log_odds: of both, where unlikelihood needs them: from log p they could not be had where p rounds to 1.
    """

    harmful: Tensor
    refusal: Tensor
    rows: tuple[Tensor, Tensor]
    count: int
    log_odds: tuple[Tensor, Tensor] | None = None

    def means(self) -> tuple[Tensor, Tensor]:
        """(B,) token means log p(y) and log p(y_ref)."""
        return (
            objectives.row_means(self.harmful, self.rows[0], self.count),
            objectives.row_means(self.refusal, self.rows[1], self.count),
        )


def pair_batch(network: Network, rows: Sequence[HarmfulRow], cfg: TrainingConfig) -> Batch:
    """2B rows: the prompts with their harmful responses, then the same prompts with their refusals."""
    both = [row.harmful for row in rows] + [row.refusal for row in rows]
    return collate(both, share_prefix=cfg.attack.positions == "user", device=network.device)


def pair_logprobs(
    network: Network, batch: Batch, delta: Tensor | None, cfg: TrainingConfig, prefix: Prefix | None = None
) -> PairLogprobs:
    """Runs a `pair_batch` once, both halves under the same perturbation (L, B, T', D) with T' <= T."""
    B = len(batch.ids) // 2
    if delta is not None:
        longer = F.pad(delta, (0, 0, 0, batch.ids.shape[1] - delta.shape[2]))
        delta = torch.cat([longer, longer], dim=1)
    found = network.response_logits(batch, delta, prefix, cfg.attack.layers)
    n = sum(batch.response_tokens[:B])  # row after row: the harmful responses come first
    rows = found.rows[:n], found.rows[n:] - B
    if cfg.away == "unlikelihood":
        log_odds = objectives.token_log_odds(found.logits, found.targets)
        logprobs = F.logsigmoid(log_odds)
        return PairLogprobs(logprobs[:n], logprobs[n:], rows, B, (log_odds[:n], log_odds[n:]))
    logprobs = objectives.token_logprobs(found.logits, found.targets)
    return PairLogprobs(logprobs[:n], logprobs[n:], rows, B)


def find_perturbation(network: Network, rows: Sequence[HarmfulRow], cfg: TrainingConfig, unit_norm: float) -> Perturbation:
    """Attacks the prompts of the rows so that the model as it is now gives their harmful responses.

    Args:
        network: attacked in evaluation mode.
        rows: at least one.
        cfg: its `attack` section; for a joint objective the away and toward terms too.
        unit_norm: mean embedding norm.
    """
    joint, B = cfg.attack.objective == "joint", len(rows)
    if joint:
        batch = pair_batch(network, rows, cfg)
    else:
        batch = collate([row.harmful for row in rows], share_prefix=cfg.attack.positions == "user", device=network.device)
    with network.frozen():
        with torch.no_grad():
            prefix = network.prefix(batch)

        def harmful_alone(delta: Tensor) -> tuple[Tensor, Tensor]:
            found = network.response_logits(batch, delta, prefix, cfg.attack.layers)
            entropies = -objectives.row_means(objectives.token_logprobs(found.logits, found.targets), found.rows, B)
            return entropies, entropies

        def exchanged(delta: Tensor) -> tuple[Tensor, Tensor]:
            """The update's own terms with the responses exchanged: toward y, away from y_ref; no cutoffs."""
            found = pair_logprobs(network, batch, delta, cfg, prefix)
            entropies, refusals = -found.means()[0], found.means()[1]
            if found.log_odds is not None:
                refusals = objectives.row_means(objectives.unlikelihood(found.log_odds[1], None), found.rows[1], B)
            return cfg.away_weight * entropies + cfg.toward_weight * refusals, entropies

        positions = batch.positions(cfg.attack.positions)
        if joint:
            positions = positions[:B] | positions[B:]
        everywhere = positions.expand(len(cfg.attack.layers), *positions.shape)
        width = network.embedding.weight.shape[1]
        replayed = cfg.cuda_graph and network.replayable
        return attack(exchanged if joint else harmful_alone, everywhere, width, cfg.attack, unit_norm, replayed=replayed)


def harmful_losses(
    network: Network, rows: Sequence[HarmfulRow], delta: Tensor, cfg: TrainingConfig, rows_of_update: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Away and toward under the same perturbation, in one forward pass of 2B rows.

    Args:
        network: run as it stands.
        rows: B of them.
        delta: (L, B, T, D) of the attack.
        cfg: forms, weights and cutoffs.
        rows_of_update: harmful rows of the update over all workers.

    Returns:
        This share of the weighted loss; (B,) mean log p(y); (B,) mean log p(y_ref).
    """
    batch, B = pair_batch(network, rows, cfg), len(rows)
    margin = reference_margin(network, batch, cfg) if cfg.away == "ipo" else None
    found = pair_logprobs(network, batch, delta, cfg)
    if margin is not None:
        losses = cfg.away_weight * objectives.ipo_rows(found.harmful, found.refusal, margin, found.rows, cfg)
    else:
        log_odds = None if found.log_odds is None else found.log_odds[0]
        losses = cfg.away_weight * objectives.away_rows(found.harmful, found.rows[0], B, cfg, log_odds)
        losses = losses + cfg.toward_weight * objectives.toward_rows(found.refusal, found.rows[1], B, cfg)
    with torch.no_grad():
        harmful, refusal = found.means()
    return objectives.harmful_loss(losses, cfg.loss_clip, rows_of_update), harmful, refusal


def reference_margin(network: Network, batch: Batch, cfg: TrainingConfig) -> Tensor:
    """(B,) lp(y_ref | x) - lp(y | x) of the model before training, on unperturbed prompts: the adapter is off."""
    with torch.no_grad(), network.frozen(), network.model.disable_adapter():
        harmful, refusal = pair_logprobs(network, batch, None, cfg).means()
    return refusal - harmful


def retain_losses(network: Network, rows: Sequence[Encoded], cfg: TrainingConfig, tokens_of_update: int) -> tuple[Tensor, Tensor]:
    """The retain term; a KL is against the same weights with the adapter off.

    Args:
        network: run as it stands.
        rows: at least one.
        cfg: form and weight.
        tokens_of_update: retain tokens of the update over all workers.

    Returns:
        This share of the weighted loss; (N,) the term at each token.
    """
    batch = collate(rows, share_prefix=True, device=network.device)
    teacher = None
    if cfg.retain_loss != "ce":
        with torch.no_grad(), network.frozen(), network.model.disable_adapter():
            teacher = network.response_logits(batch).logits
    found = network.response_logits(batch)
    values = objectives.retain_tokens(teacher, found.logits, found.targets, cfg.retain_loss)
    return cfg.retain_weight * objectives.retain_loss(values, tokens_of_update), values.detach()
