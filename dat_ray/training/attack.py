"""The continuous attack of the inner loop: a perturbation of prompt embeddings that raises p(harmful response).

max over delta of log p(y | E(x) + delta), by gradient steps on delta alone (method: CAT, arXiv 2405.15589,
its published code's inner loop; DAT keeps it with an unbounded radius).

Shapes: B rows, T positions, D width; before them, where several layers are perturbed, the layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dat_ray.config.training import AttackConfig
from dat_ray.training.replay import Evaluate, Replayed

# Keeps a zero gradient from becoming 0/0; far below any real gradient norm in float32.
TINY = 1e-20
# Embeddings measured at once: a copy of all of a large vocabulary's would take gigabytes.
IDS_AT_ONCE = 4096


# A perturbation (..., B, T, D) -> (B,) what the attack lowers, and (B,) cross-entropy of each harmful response, in nats.
AttackObjective = Callable[[Tensor], tuple[Tensor, Tensor]]

# Adam's constants, as every published attack leaves them (PyTorch's defaults).
BETA_1, BETA_2, ADAM_EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Perturbation:
    """What an attack found.

    Attributes:
        delta: (..., B, T, D) float32, the last or the best iterate; zero off the perturbed positions.
        harmful_ce: mean over rows of the harmful response's cross-entropy, in nats, at iterates 0 .. steps - 1.
        relative_norm: mean ||delta_t|| over perturbed positions, in units of the mean embedding norm, at iterates
            1 .. steps.
    """

    delta: Tensor
    harmful_ce: list[float]
    relative_norm: list[float]


@torch.no_grad()
def mean_embedding_norm(embedding: nn.Module) -> float:
    """Mean L2 norm of what an embedding puts out for each token of its vocabulary: the unit of relative sizes.

    That is what a perturbation is added to. Some families multiply their weights on the way out (Gemma by sqrt(D)); CAT's
    public code takes the norm of the weights, which is the same thing where they don't. A factor that a decoder applies
    later (Granite) scales the sum of both, and so is in neither.

    Args:
        embedding: a model's input embedding, (V, D) weights, on any device.
    """
    ids = torch.arange(embedding.weight.shape[0], device=embedding.weight.device)
    return float(torch.cat([embedding(part).float().norm(dim=1) for part in ids.split(IDS_AT_ONCE)]).mean().item())


class Direction:
    """The step's shape from the gradient (..., T, D).

    Args:
        rule: `sign`, `l2_normalized` (each position's unit vector), `raw` (the gradient itself) or `adam`, whose moments
            start at zero with every attack.
    """

    def __init__(self, rule: str) -> None:
        self.rule, self.taken = rule, 0
        self.mean: Tensor | float = 0.0
        self.square: Tensor | float = 0.0

    def __call__(self, gradient: Tensor) -> Tensor:
        if self.rule == "sign":
            return gradient.sign()
        if self.rule == "l2_normalized":
            return gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=TINY)
        if self.rule == "raw":
            return gradient
        assert self.rule == "adam", self.rule
        self.taken += 1
        self.mean = BETA_1 * self.mean + (1 - BETA_1) * gradient
        self.square = BETA_2 * self.square + (1 - BETA_2) * gradient.square()
        unbiased = self.square / (1 - BETA_2**self.taken)
        return self.mean / (1 - BETA_1**self.taken) / (unbiased.sqrt() + ADAM_EPSILON)


def project(delta: Tensor, radius: float | None) -> Tensor:
    """Each position's vector back into the L2 ball of this radius; (..., T, D) as it is without one."""
    if radius is None:
        return delta
    return delta * (radius / delta.norm(dim=-1, keepdim=True).clamp(min=TINY)).clamp(max=1.0)


class Best:
    """Each row's best iterate so far by the attack's objective."""

    def __init__(self) -> None:
        self.delta: Tensor | None = None
        self.value: Tensor | None = None

    def offer(self, delta: Tensor, value: Tensor) -> None:
        """Keeps the rows of `delta` (..., B, T, D) whose `value` (B,) is lower than before."""
        if self.delta is None or self.value is None:
            self.delta, self.value = delta, value
            return
        self.delta = torch.where((value < self.value)[:, None, None], delta, self.delta)
        self.value = torch.minimum(value, self.value)


def attack(
    objective: AttackObjective, positions: Tensor, width: int, cfg: AttackConfig, unit_norm: float, *, replayed: bool = False
) -> Perturbation:
    """Runs the attack from a zero start.

    What is differentiated is the SUM over rows of each row's objective: a row's gradient then is the one that it has
    alone, whatever its batch mates, which matters for `raw` and `adam` steps. No parameter's `.grad` is touched.

    Args:
        objective: of a perturbation.
        positions: (..., B, T) bool, where the perturbation may act.
        width: D.
        cfg: steps, size, rule, unit, radius and iterate.
        unit_norm: mean embedding norm of the model's vocabulary (`mean_embedding_norm`).
        replayed: record the objective and its gradient as a CUDA graph; the objective must read nothing back to the host.
    """

    def evaluate(delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        delta = delta.detach().requires_grad_(True)
        value, entropies = objective(delta)
        (gradient,) = torch.autograd.grad(value.sum(), delta)
        return value.detach(), entropies.detach(), gradient

    take: Evaluate = Replayed(evaluate) if replayed else evaluate
    scale = unit_norm if cfg.unit == "relative" else 1.0
    step = cfg.step_size * scale
    radius = cfg.radius
    if radius is not None and (cfg.radius_unit or cfg.unit) == "relative":
        radius *= unit_norm
    where = positions[..., None].float()
    delta = where.new_zeros((*positions.shape, width))
    direction, best = Direction(cfg.step_rule), Best()
    # The host reads these once, at the end: a step must not wait for it.
    entropies_seen, norms_seen = [], []
    for _ in range(cfg.steps):
        value, entropies, gradient = take(delta)
        if cfg.iterate == "best":
            best.offer(delta, value.clone())
        # The model predicts y badly where the entropy is high: the attack walks down it.
        delta = project(delta - step * where * direction(gradient), radius)
        entropies_seen.append(entropies.mean())
        norms_seen.append((delta.norm(dim=-1) * positions).sum() / positions.sum() / unit_norm)
    if cfg.iterate == "best":
        with torch.no_grad():
            best.offer(delta, objective(delta)[0])
        assert best.delta is not None
        delta = best.delta
    return Perturbation(delta.detach(), _read(entropies_seen), _read(norms_seen))


def _read(numbers: list[Tensor]) -> list[float]:
    return torch.stack(numbers).tolist() if numbers else []
