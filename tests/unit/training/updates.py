"""One update's loss and gradient, for tests of what leaves both as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from dat_ray.config.training import TrainingConfig
from dat_ray.models.chat import Encoded
from dat_ray.training.attack import mean_embedding_norm
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.network import Network
from dat_ray.training.step import UpdateRows, accumulate, perturb
from dat_ray.training.trainer import no_reduce


def whole(harmful: list[HarmfulRow], retain: list[Encoded]) -> UpdateRows:
    return UpdateRows(harmful, retain, len(harmful), sum(b - a for a, b in (r.response_span for r in retain)))


def run(network: Network, rows: UpdateRows, cfg: TrainingConfig) -> tuple[float, Tensor]:
    """Loss and flat gradient."""
    network.model.zero_grad(set_to_none=True)
    found = perturb(network, rows, cfg, mean_embedding_norm(network.embedding))
    sums, _ = accumulate(network, rows, found, cfg, no_reduce)
    return sums[3].item(), flat_gradient(network)


def flat_gradient(network: Network) -> Tensor:
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.trainable().values()]
    return torch.cat([g.reshape(-1) for g in grads]).clone()
