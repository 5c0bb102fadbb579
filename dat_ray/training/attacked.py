"""What the attack of training does to rows outside of a training: how likely their harmful responses become, and the perturbed
embeddings themselves.

Shapes: L perturbed layers, B rows, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dat_ray.config.training import AttackConfig, TrainingConfig
from dat_ray.models.chat import Encoded
from dat_ray.training.attack import attack, mean_embedding_norm
from dat_ray.training.batches import Batch, HarmfulRow, collate
from dat_ray.training.network import Network
from dat_ray.training.objectives import row_means, token_logprobs
from dat_ray.training.terms import find_perturbation


class HarmfulLogprob(NamedTuple):
    """Mean log p of one row's harmful response, nats a token; `attacked` is None where the attack has no steps."""

    plain: float
    attacked: float | None


class HarmfulScorer:
    """How likely harmful responses are, as they are and under the perturbation that training would find.

    Under it this is the away term of training's loss (see `dat_ray.training.objectives`), which is to be minimized: the higher,
    the worse.

    Args:
        network: frozen.
        cfg: its section `attack`; for a joint objective the weights of the terms too.
    """

    def __init__(self, network: Network, cfg: TrainingConfig) -> None:
        self._network, self._cfg = network, cfg
        self._unit_norm = mean_embedding_norm(network.embedding)

    def score(self, rows: Sequence[tuple[Encoded, Encoded]]) -> list[HarmfulLogprob]:
        """The rows in order, each with its own perturbation, whatever its batch mates.

        Args:
            rows: at least one: a prompt with its harmful response, and the same prompt with its refusal.
        """
        cfg, device = self._cfg, self._network.device
        batch = collate([harmful for harmful, _ in rows], share_prefix=cfg.attack.positions == "user", device=device)
        plain = self._means(batch, None)
        if not cfg.attack.steps:
            return [HarmfulLogprob(value, None) for value in plain]
        delta = find_perturbation(self._network, [HarmfulRow(*row) for row in rows], cfg, self._unit_norm).delta
        # A joint attack was on rows that may be longer, by their refusals.
        attacked = self._means(batch, delta[:, :, : batch.ids.shape[1]])
        return [HarmfulLogprob(*values) for values in zip(plain, attacked, strict=True)]

    @torch.no_grad()
    def _means(self, batch: Batch, delta: Tensor | None) -> list[float]:
        found = self._network.response_logits(batch, delta, layers=self._cfg.attack.layers)
        values: list[float] = row_means(token_logprobs(found.logits, found.targets), found.rows, len(batch.ids)).tolist()
        return values


def attack_embeddings(network: Network, row: Encoded, config: AttackConfig) -> tuple[Tensor, list[float]]:
    """Searches the perturbation that makes a response likely.

    Args:
        network: the model, frozen.
        row: the goal as user message, and the response.
        config: of the attack.

    Returns:
        The perturbed embeddings (1, T, D) of the prompt without a response, and the response's cross-entropy, nats a
        token, at the start and after each step.
    """
    batch = collate([row], share_prefix=config.positions == "user", device=network.device)
    embedding = network.embedding

    def objective(delta: Tensor) -> tuple[Tensor, Tensor]:
        out = network.response_logits(batch, delta)
        entropies = -row_means(token_logprobs(out.logits, out.targets), out.rows, 1)
        return entropies, entropies

    width, unit_norm = embedding.weight.shape[1], mean_embedding_norm(embedding)
    found = attack(objective, batch.positions(config.positions)[None], width, config, unit_norm)
    with torch.no_grad():
        last = objective(found.delta)[1].item()
        prompt = row.response_span[0]
        embeddings = embedding(batch.ids[:, :prompt]).float() + found.delta[0, :, :prompt]
    return embeddings.to(embedding.weight.dtype), [*found.harmful_ce, last]
