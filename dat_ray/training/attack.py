"""The continuous attack of the inner loop: a perturbation of prompt embeddings that raises p(harmful response).

max over delta of log p(y | E(x) + delta), by gradient steps on delta alone (method: CAT, arXiv 2405.15589,
its published code's inner loop; DAT keeps it with an unbounded radius).

Shapes: B rows, T positions, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dat_ray.config.schema import AttackConfig

# Keeps a zero gradient from becoming 0/0; far below any real gradient norm in float32.
TINY = 1e-20


@dataclass(frozen=True)
class Perturbation:
    """What an attack found.

    Attributes:
        delta: (B, T, D) float32, the last iterate; zero off the perturbed positions.
        harmful_ce: mean over rows of the harmful response's cross-entropy, in nats, at iterates 0 .. steps - 1.
        relative_norm: mean ||delta_t|| over perturbed positions, in units of the mean embedding norm, at iterates
            1 .. steps.
    """

    delta: Tensor
    harmful_ce: list[float]
    relative_norm: list[float]


def mean_embedding_norm(weight: Tensor) -> float:
    """Mean L2 norm of the vocabulary's embeddings (V, D), the unit of relative step sizes."""
    return weight.detach().float().norm(dim=1).mean().item()


def direction(gradient: Tensor, rule: str) -> Tensor:
    """The step's shape from the gradient (B, T, D): each position's sign, unit vector, or the gradient itself."""
    if rule == "sign":
        return gradient.sign()
    if rule == "l2_normalized":
        return gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=TINY)
    assert rule == "raw", rule
    return gradient


def project(delta: Tensor, radius: float | None) -> Tensor:
    """Each position's vector back into the L2 ball of this radius; (B, T, D) as it is without one."""
    if radius is None:
        return delta
    return delta * (radius / delta.norm(dim=-1, keepdim=True).clamp(min=TINY)).clamp(max=1.0)


def attack(
    row_entropies: Callable[[Tensor], Tensor], positions: Tensor, width: int, cfg: AttackConfig, unit_norm: float
) -> Perturbation:
    """Runs the attack from a zero start and returns its last iterate.

    The objective is the SUM over rows of each row's token mean: a row's gradient then is the one that it has
    alone, whatever its batch mates, which matters for `raw` steps. No parameter's `.grad` is touched.

    Args:
        row_entropies: (B, T, D) float32 perturbation -> (B,) mean cross-entropy of each harmful response, in nats.
        positions: (B, T) bool, where the perturbation may act.
        width: D.
        cfg: steps, size, rule, unit and radius.
        unit_norm: mean embedding norm of the model's vocabulary (`mean_embedding_norm`).
    """
    scale = unit_norm if cfg.unit == "relative" else 1.0
    step = cfg.step_size * scale
    radius = None if cfg.radius is None else cfg.radius * scale
    where = positions[..., None].float()
    delta = where.new_zeros((*positions.shape, width))
    entropies_seen, norms_seen = [], []
    for _ in range(cfg.steps):
        delta.requires_grad_(True)
        entropies = row_entropies(delta)
        (gradient,) = torch.autograd.grad(entropies.sum(), delta)
        # The model predicts y badly where the entropy is high: the attack walks down it.
        delta = project(delta.detach() - step * where * direction(gradient, cfg.step_rule), radius)
        entropies_seen.append(entropies.detach().mean().item())
        norms_seen.append((delta.norm(dim=-1)[positions].mean() / unit_norm).item())
    return Perturbation(delta.detach(), entropies_seen, norms_seen)
