"""Perturbs the embeddings of a goal until a response is likely, by training's own attack, and lets the model answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dat_ray.config.training import AttackConfig
from dat_ray.evaluation.questions import SearchRequest
from dat_ray.evaluation.search.whitebox import Whitebox
from dat_ray.models.chat import Encoded
from dat_ray.training.attack import attack, mean_embedding_norm
from dat_ray.training.batches import collate
from dat_ray.training.network import Network
from dat_ray.training.objectives import row_means, token_logprobs


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


class EmbeddingSearch:
    """The embedding attack as a method of search, with the settings `evaluation.embedding`."""

    def __init__(self, whitebox: Whitebox) -> None:
        self._whitebox = whitebox

    def advance(self, request: SearchRequest, row: Encoded, state: None, stop: Callable[[], bool]) -> dict[str, Any]:
        """In one go: it takes no longer than an update of the training."""
        config = self._whitebox.evaluation.embedding.attack
        embeddings, losses = attack_embeddings(self._whitebox.network, row, config)
        return {"completion": self._whitebox.complete(embeddings), "losses": losses, "model_calls": config.steps + 2}
