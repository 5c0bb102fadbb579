"""One update of fine-tuning, top to bottom: attack, away and toward, retain; the trainer sums, clips and steps.

Shapes: B rows of this worker, T positions, D width, N response tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from dat_ray.config.training import TrainingConfig
from dat_ray.models.chat import Encoded
from dat_ray.training.attack import Perturbation, mean_embedding_norm
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.cost import update_cost
from dat_ray.training.network import Network
from dat_ray.training.objectives import normalized_factor
from dat_ray.training.terms import find_perturbation, harmful_losses, retain_losses
from dat_ray.training.trainer import (
    GRADIENT_NORM,
    SINGLE_WORKER,
    Diverged,
    Reduce,
    Schedule,
    Trainer,
    TrainerSettings,
    WorkerInfo,
)

AnyRow = TypeVar("AnyRow", HarmfulRow, Encoded)

# The field that a term's guard is set by.
GUARDS = {"away": "training.stop_away", "retain": "training.stop_retain"}

# What the loss is multiplied by before its backward pass in float16, whose numbers end at 6e-8: the gradients of hidden states
# lie around there (docs/experiments.md), and what rounds to 0 on the way is missing in the adapter's gradient, in silence.
# The first is tried, the next where that overflows: the scale hangs on the update alone, so that no state is kept. Powers of
# two, which the adapter's float32 gradients are divided by without rounding.
LOSS_SCALES = (2.0**12, 2.0**8, 2.0**4, 1.0)


def term_names(cfg: TrainingConfig) -> tuple[str, ...]:
    """The metrics of an update: mean log p(y), mean CE(y_ref), the retain term by its name, and the loss."""
    retain = {"kl_forward": "retain_kl", "kl_reverse": "retain_reverse_kl", "ce": "retain_ce"}[cfg.retain_loss]
    return "away", "toward", retain, "loss"


def diverged(update: int, term: str, value: float) -> Diverged:
    """The error for a term of an update that is not a number, or past its guard."""
    remedy = "lower training.learning_rate or training.attack.step_size, or set training.away_cutoff"
    guard = GUARDS[term.partition("_")[0]] if math.isfinite(value) else ""
    if guard == GUARDS["retain"]:
        remedy = "raise training.retain_weight or training.retain_rows, or lower training.learning_rate"
    if term == GRADIENT_NORM:
        remedy += ", or training.dtype from float16 to bfloat16"
    return Diverged(update, term, value, remedy, guard)


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


def loss_scales(dtype: torch.dtype) -> tuple[float, ...]:
    """By what the loss is multiplied before a backward pass through a model of this dtype, in the order of trying."""
    return LOSS_SCALES if dtype == torch.float16 else (1.0,)


def make_optimizer(network: Network, cfg: TrainingConfig) -> torch.optim.AdamW:
    """AdamW on the adapter."""
    return torch.optim.AdamW(network.trainable().values(), lr=cfg.learning_rate, weight_decay=cfg.weight_decay)


def make_trainer(
    network: Network, cfg: TrainingConfig, updates: int, seed: int = 0, worker: WorkerInfo = SINGLE_WORKER
) -> Trainer:
    """The trainer of a network's adapter.

    Args:
        network: with the adapter.
        cfg: the recipe's `training`.
        updates: how many there will be.
        seed: of the run.
        worker: this one.
    """
    settings = TrainerSettings(
        schedule=Schedule(updates, cfg.learning_rate, cfg.warmup, cfg.schedule),
        max_grad_norm=cfg.max_grad_norm,
        checkpoint_every=cfg.checkpoint_every,
        seed=seed,
        loss_scales=loss_scales(network.dtype),
    )
    return Trainer(network.trainable(), make_optimizer(network, cfg), settings, worker)


def chunks(rows: Sequence[AnyRow], cfg: TrainingConfig) -> list[Sequence[AnyRow]]:
    """The rows that go through the model together."""
    size = cfg.micro_rows or max(len(rows), 1)
    return [rows[low : low + size] for low in range(0, len(rows), size)]


def perturb(network: Network, rows: UpdateRows, cfg: TrainingConfig, unit_norm: float) -> list[Perturbation]:
    """The attack on this worker's share, one perturbation a chunk; no parameter's `.grad` is touched."""
    return [find_perturbation(network, chunk, cfg, unit_norm) for chunk in chunks(rows.harmful, cfg)]


def attack_trace(found: Sequence[Perturbation], rows: UpdateRows, cfg: TrainingConfig, device: torch.device) -> Tensor:
    """(2 * steps,) float64, whose sum over workers holds the update's harmful cross-entropy before each step of the
    attack, then the relative norm of the perturbation after each."""
    trace = torch.zeros(2 * cfg.attack.steps, dtype=torch.float64)
    for chunk, one in zip(chunks(rows.harmful, cfg), found, strict=True):
        share = len(chunk) / rows.harmful_count
        trace += torch.tensor([share * value for value in one.harmful_ce + one.relative_norm], dtype=torch.float64)
    return trace.to(device)


def accumulate(
    network: Network,
    rows: UpdateRows,
    found: Sequence[Perturbation],
    cfg: TrainingConfig,
    reduce: Reduce,
    scale: float = 1.0,
) -> tuple[Tensor, dict[str, float]]:
    """Adds this worker's share of the gradient to `.grad`.

    Args:
        network: in training mode.
        rows: this worker's share.
        found: of `perturb`.
        cfg: what to compute.
        reduce: sum over workers; called here only where the retain term is divided by its own value.
        scale: of the loss in the backward passes; the gradients that are left in `.grad` are those of the loss itself.

    Returns:
        (4,) float64, whose sum over workers holds the update's `term_names`; and seconds by part.
    """
    away = toward = retain = loss = 0.0
    seconds = {}
    began = time.perf_counter()
    if rows.harmful:
        for chunk, one in zip(chunks(rows.harmful, cfg), found, strict=True):
            term, harmful, refusal = harmful_losses(network, chunk, one.delta, cfg, rows.harmful_count)
            (term * scale).backward()
            away += harmful.double().sum().item() / rows.harmful_count
            toward += -refusal.double().sum().item() / rows.harmful_count
            loss += term.item()
        seconds["harmful"] = time.perf_counter() - began
    if cfg.retain_weight > 0:
        before = _set_aside(network) if cfg.retain_normalized else {}
        retain_part = 0.0
        for part in chunks(rows.retain, cfg):
            term, values = retain_losses(network, part, cfg, rows.retain_tokens)
            (term * scale).backward()
            retain += values.double().sum().item() / rows.retain_tokens
            retain_part += term.item()
        if cfg.retain_normalized:
            retain_part *= _normalize(network, before, retain, reduce)
        loss += retain_part
        seconds["retain"] = time.perf_counter() - began - sum(seconds.values())
    if scale != 1.0:
        for parameter in network.trainable().values():
            if parameter.grad is not None:
                parameter.grad.div_(scale)
    return torch.tensor([away, toward, retain, loss], dtype=torch.float64, device=network.device), seconds


def _set_aside(network: Network) -> dict[str, Tensor]:
    """Takes the gradients that are there out of `.grad`."""
    before = {}
    for name, parameter in network.trainable().items():
        if parameter.grad is not None:
            before[name], parameter.grad = parameter.grad, None
    return before


def _normalize(network: Network, before: dict[str, Tensor], value: float, reduce: Reduce) -> float:
    """Divides the gradients in `.grad` by the update's retain term, adds what was set aside, and returns the factor."""
    whole = torch.tensor([value], dtype=torch.float64, device=network.device)
    reduce(whole)
    factor = normalized_factor(whole.item(), network.vocabulary)
    for name, parameter in network.trainable().items():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
        if name in before:
            parameter.grad = before[name] if parameter.grad is None else parameter.grad.add_(before[name])
    return factor


class FineTuning:
    """Distributional adversarial training of a network's adapter, as an `Objective`.

    Args:
        network: changed in place, by the trainer.
        cfg: losses, attack, guards.
        rows_of: this worker's share of an update, from its number.
        unit_norm: mean embedding norm, of relative attack sizes; None to measure it.
    """

    def __init__(
        self, network: Network, cfg: TrainingConfig, rows_of: Callable[[int], UpdateRows], unit_norm: float | None = None
    ) -> None:
        self.network, self.cfg, self.rows_of = network, cfg, rows_of
        self.unit_norm = mean_embedding_norm(network.embedding) if unit_norm is None else unit_norm
        self.names = term_names(cfg)

    def update(self, trainer: Trainer, update: int) -> dict[str, Any]:
        """One update: an attack, and `steps_per_attack` steps under its perturbation.

        Args:
            trainer: of `make_trainer`.
            update: number of this update, from 0.

        Returns:
            The update's metrics, equal on every worker but for the seconds.

        Raises:
            Diverged: a term or the gradient is not finite, or past a guard; the weights are as they were before the step.
        """
        network, cfg, rows = self.network, self.cfg, self.rows_of(update)
        began = time.perf_counter()
        network.model.train()
        perturbations = perturb(network, rows, cfg, self.unit_norm)
        attacked = time.perf_counter() - began
        trace = attack_trace(perturbations, rows, cfg, network.device)
        seconds = {"attack": attacked} if perturbations else {}

        def backward(scale: float) -> Tensor:
            sums, taken = accumulate(network, rows, perturbations, cfg, trainer.worker.reduce, scale)
            for part, value in taken.items():
                seconds[part] = seconds.get(part, 0.0) + value
            return torch.cat([sums, trace])

        if cfg.fresh_optimizer:
            trainer.optimizer.state.clear()
        # Later steps see a perturbation that was found for weights of the past: the first tells what it can do.
        step, *_ = [
            trainer.step(update, backward, partial(self._check, update), partial(diverged, update))
            for _ in range(cfg.steps_per_attack)
        ]
        terms, along = dict(zip(self.names, step.sums, strict=False)), step.sums[len(self.names) :]
        took = time.perf_counter() - began
        return {
            "update": update,
            **terms,
            "attack_ce": [*along[: cfg.attack.steps], -terms["away"]],
            "attack_norm": along[cfg.attack.steps :],
            "gradient_norm": step.gradient_norm,
            **({"loss_scale": step.loss_scale} if len(trainer.settings.loss_scales) > 1 else {}),
            "seconds_by_part": seconds,
            "learning_rate": step.learning_rate,
            "seconds": took,
            "cost": update_cost(network, rows.harmful, rows.retain, cfg, took),
        }

    def _check(self, update: int, sums: Sequence[float]) -> None:
        terms = dict(zip(self.names, sums, strict=False))
        for name, value in terms.items():
            if not math.isfinite(value):
                raise diverged(update, name, value)
        check_guards(terms, self.cfg, update)


def check_guards(terms: Mapping[str, float], cfg: TrainingConfig, update: int) -> None:
    """Stops a run whose numbers are finite and still tell that it is lost.

    Raises:
        Diverged: the harmful response was pushed below `stop_away`, or the retain term rose above `stop_retain`.
    """
    retain = next(name for name in terms if name.startswith("retain"))
    if cfg.stop_away is not None and terms["away"] < cfg.stop_away:
        raise diverged(update, "away", terms["away"])
    if cfg.stop_retain is not None and terms[retain] > cfg.stop_retain:
        raise diverged(update, retain, terms[retain])
