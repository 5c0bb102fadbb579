"""One update, top to bottom: attack, away and toward, retain, reduce, clip, step.

Knows nothing of Ray: the workers' sum is a function that is passed in.

Shapes: B rows of this worker, T positions, D width, N response tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from dat_ray.config.training import TrainingConfig
from dat_ray.data.ids import row_id, seed_from_id
from dat_ray.errors import DatError
from dat_ray.models.chat import Encoded
from dat_ray.training.attack import Perturbation
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.cost import update_cost
from dat_ray.training.network import Network
from dat_ray.training.objectives import normalized_factor
from dat_ray.training.terms import find_perturbation, harmful_losses, retain_losses

# Adds a tensor up over all workers, in place.
Reduce = Callable[[Tensor], None]
AnyRow = TypeVar("AnyRow", HarmfulRow, Encoded)

# The field that a term's guard is set by.
GUARDS = {"away": "training.stop_away", "retain": "training.stop_retain"}

GRADIENT_NORM = "gradient norm"

# What the loss is multiplied by before its backward pass in float16, whose numbers end at 6e-8: the gradients of hidden states
# lie around there (docs/experiments.md), and what rounds to 0 on the way is missing in the adapter's gradient, in silence.
# The first is tried, the next where that overflows: the scale hangs on the update alone, so that no state is kept. Powers of
# two, which the adapter's float32 gradients are divided by without rounding.
LOSS_SCALES = (2.0**12, 2.0**8, 2.0**4, 1.0)


def term_names(cfg: TrainingConfig) -> tuple[str, ...]:
    """The metrics of an update: mean log p(y), mean CE(y_ref), the retain term by its name, and the loss."""
    retain = {"kl_forward": "retain_kl", "kl_reverse": "retain_reverse_kl", "ce": "retain_ce"}[cfg.retain_loss]
    return "away", "toward", retain, "loss"


class Diverged(DatError):
    """A term that is not a number, or past its guard. Every worker sees the same, and no retry would mend it."""

    def __init__(self, update: int, term: str, value: float) -> None:
        remedy = "lower training.learning_rate or training.attack.step_size, or set training.away_cutoff"
        if math.isfinite(value):
            guard = GUARDS[term.partition("_")[0]]
            problem = f"{term} is {value:.3g} at update {update}, past {guard}"
            if guard == GUARDS["retain"]:
                remedy = "raise training.retain_weight or training.retain_rows, or lower training.learning_rate"
        else:
            problem = f"{term} is {value} at update {update}"
            if term == GRADIENT_NORM:
                remedy += ", or training.dtype from float16 to bfloat16"
        super().__init__(f"training diverged: {problem}; the last checkpoint is kept; {remedy}")
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
    """Linear warm-up, then constant or half a cosine towards 0; a function of the update: nothing has to be restored."""
    warmup = math.ceil(cfg.warmup * updates)
    if update < warmup:
        return cfg.learning_rate * (update + 1) / warmup
    if cfg.schedule == "constant":
        return cfg.learning_rate
    progress = (update - warmup) / max(updates - warmup, 1)
    return cfg.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def loss_scales(dtype: torch.dtype) -> tuple[float, ...]:
    """By what the loss is multiplied before a backward pass through a model of this dtype, in the order of trying."""
    return LOSS_SCALES if dtype == torch.float16 else (1.0,)


def make_optimizer(network: Network, cfg: TrainingConfig) -> torch.optim.AdamW:
    """AdamW on the adapter."""
    return torch.optim.AdamW(network.trainable().values(), lr=cfg.learning_rate, weight_decay=cfg.weight_decay)


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
        Diverged: a term or the gradient is not finite, or a guard spoke; the weights are as they were before the step.
    """
    began = time.perf_counter()
    # Dropout is the only random number here; its seed is a function of the update, so that no state is restored.
    torch.manual_seed(seed_from_id(row_id("update", seed, update, rank)))
    network.model.train()
    found = perturb(network, rows, cfg, unit_norm)
    attacked = time.perf_counter() - began
    trace = attack_trace(found, rows, cfg, network.device)
    rate = learning_rate(update, updates, cfg)
    metrics: dict[str, Any] = {}
    for step in range(cfg.steps_per_attack):
        terms, seconds = _optimizer_step(network, optimizer, rows, found, cfg, update, rate, trace, reduce)
        if step == 0:
            # Later steps see a perturbation that was found for weights of the past: the first tells what it can do.
            metrics = {"update": update, **terms, "seconds_by_part": {"attack": attacked} if found else {}}
        for part, value in seconds.items():
            metrics["seconds_by_part"][part] = metrics["seconds_by_part"].get(part, 0.0) + value
    metrics["learning_rate"] = rate
    metrics["seconds"] = time.perf_counter() - began
    metrics["cost"] = update_cost(network, rows.harmful, rows.retain, cfg, metrics["seconds"])
    return metrics


def _optimizer_step(
    network: Network,
    optimizer: torch.optim.Optimizer,
    rows: UpdateRows,
    found: Sequence[Perturbation],
    cfg: TrainingConfig,
    update: int,
    rate: float,
    trace: Tensor,
    reduce: Reduce,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Losses, reduction, guards, clipping, AdamW: the step's metrics, and seconds by part."""
    parameters, names = list(network.trainable().values()), term_names(cfg)
    scales, norm = loss_scales(network.dtype), math.nan
    seconds: dict[str, float] = {}
    for scale in scales:
        optimizer.zero_grad(set_to_none=True)
        sums, took = accumulate(network, rows, found, cfg, reduce, scale)
        seconds = {part: seconds.get(part, 0.0) + value for part, value in took.items()}
        reduce_gradients(parameters, reduce)
        sums = torch.cat([sums, trace])
        reduce(sums)
        terms = dict(zip(names, sums[: len(names)].tolist(), strict=True))
        along = sums[len(names) :].tolist()
        for name, value in terms.items():
            if not math.isfinite(value):
                raise Diverged(update, name, value)
        check_guards(terms, cfg, update)
        # Of the sum over workers, so that all of them go on with the same scale.
        norm = torch.nn.utils.clip_grad_norm_(parameters, cfg.max_grad_norm).item()
        if math.isfinite(norm):
            break
    if not math.isfinite(norm):
        raise Diverged(update, GRADIENT_NORM, norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    shown = {
        **terms,
        "attack_ce": [*along[: cfg.attack.steps], -terms["away"]],
        "attack_norm": along[cfg.attack.steps :],
        "gradient_norm": norm,
    }
    if len(scales) > 1:
        shown["loss_scale"] = scale
    return shown, seconds


def check_guards(terms: dict[str, float], cfg: TrainingConfig, update: int) -> None:
    """Stops a run whose numbers are finite and still tell that it is lost.

    Raises:
        Diverged: the harmful response was pushed below `stop_away`, or the retain term rose above `stop_retain`.
    """
    retain = next(name for name in terms if name.startswith("retain"))
    if cfg.stop_away is not None and terms["away"] < cfg.stop_away:
        raise Diverged(update, "away", terms["away"])
    if cfg.stop_retain is not None and terms[retain] > cfg.stop_retain:
        raise Diverged(update, retain, terms[retain])


def reduce_gradients(parameters: Sequence[torch.nn.Parameter], reduce: Reduce) -> None:
    """Sums the gradients over workers in one message; a worker without rows takes part with zeros."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    reduce(flat)
    for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = piece.view_as(parameter).clone()
