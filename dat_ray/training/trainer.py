"""The trainer of everything that is trained here: restore, update, log, checkpoint; and the optimizer's step in an update.

What is trained, and on which loss, is an `Objective`: `step.FineTuning` and `adaptation.Adaptation`. Runs in process or
inside a Ray Train worker alike, and knows nothing of Ray: the sum over workers is a function that is passed in.

Exactly resumable: stopped anywhere and started again, it ends with the same weights, bit for bit on a CPU. Rows, random
numbers and the learning rate of an update are functions of its number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from dat_ray.data.ids import row_id, seed_from_id
from dat_ray.errors import DatError
from dat_ray.training.checkpoint import Checkpoints, RunIdentity, load_checkpoint, save_checkpoint
from dat_ray.training.update_metrics import MetricsLog

# Adds a tensor up over all workers, in place.
Reduce = Callable[[Tensor], None]
# From the factor of the loss in the backward passes: adds this worker's gradient to `.grad` and returns sums over its rows,
# whose sums over workers are the update's.
Backward = Callable[[float], Tensor]

GRADIENT_NORM = "gradient norm"


def no_reduce(tensor: Tensor) -> None:
    """The `Reduce` of a single worker."""


@dataclass(frozen=True)
class WorkerInfo:
    """Rank, world size and all-reduce of this process."""

    rank: int = 0
    world: int = 1
    reduce: Reduce = no_reduce


SINGLE_WORKER = WorkerInfo()


@dataclass(frozen=True)
class Schedule:
    """Learning rates of a training.

    Attributes:
        updates: how many there will be.
        learning_rate: the highest.
        warmup: share of the updates on which it rises linearly, rounded up.
        shape: after it.
    """

    updates: int
    learning_rate: float
    warmup: float
    shape: Literal["cosine", "constant"] = "cosine"

    def rate(self, update: int) -> float:
        """Of an update from 0: the warm-up ends at the highest rate; a cosine would reach 0 one update past the last.

        A function of the update, so that nothing has to be restored.
        """
        warmup = math.ceil(self.warmup * self.updates)
        if update < warmup:
            return self.learning_rate * (update + 1) / warmup
        if self.shape == "constant":
            return self.learning_rate
        progress = (update - warmup) / max(self.updates - warmup, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class TrainerSettings:
    """How the trainer goes through its updates.

    Attributes:
        schedule: how many, and their learning rates.
        max_grad_norm: gradients are clipped to it; None: not at all.
        checkpoint_every: updates between checkpoints; there is one after the last, too.
        seed: of the random numbers that modules draw, as dropout does.
        loss_scales: by what the loss is multiplied before a backward pass, in the order of trying.
    """

    schedule: Schedule
    max_grad_norm: float | None
    checkpoint_every: int
    seed: int
    loss_scales: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step came to.

    Attributes:
        sums: of `Backward`, over all workers.
        gradient_norm: before clipping.
        learning_rate: that it was taken with.
        loss_scale: the first whose gradient did not overflow.
    """

    sums: list[float]
    gradient_norm: float
    learning_rate: float
    loss_scale: float


class Diverged(DatError):
    """A value that is not a number, or past its guard. The same on every worker, so not retried.

    Args:
        update: when, as the training counts.
        term: what has the value.
        value: of it.
        remedy: of the recipe.
        guard: the field that bounds it, where it is a number.
        unit: what is counted.
    """

    def __init__(self, update: int, term: str, value: float, remedy: str, guard: str = "", unit: str = "update") -> None:
        problem = f"{value:.3g} at {unit} {update}, past {guard}" if guard else f"{value} at {unit} {update}"
        super().__init__(f"training diverged: {term} is {problem}; the last checkpoint is kept; {remedy}")
        self.update, self.term, self.value = update, term, value
        self._arguments = (update, term, value, remedy, guard, unit)

    def __reduce__(self) -> tuple[type[Diverged], tuple[object, ...]]:
        return type(self), self._arguments


class Objective(Protocol):
    """What is trained, and on which loss."""

    def update(self, trainer: Trainer, update: int) -> dict[str, Any]:
        """Takes one update, by one or more calls of `trainer.step`.

        Args:
            trainer: of the trained weights.
            update: its number, from 0.

        Returns:
            Its metrics, for the log.

        Raises:
            Diverged: the weights are as they were before the step.
        """
        ...


@dataclass(frozen=True)
class TrainingFiles:
    """What a training leaves behind, and goes on from.

    Attributes:
        identity: what a checkpoint must agree with.
        checkpoints: where they are kept.
        log: where metrics go; None on all workers but the first.
        on_update: called with the metrics of each update, once it is logged and kept.
        keep: called with the updates done after each; keeps the weights where they are wanted later on. None on all workers but
            the first.
    """

    identity: RunIdentity
    checkpoints: Checkpoints
    log: MetricsLog | None = None
    on_update: Callable[[dict[str, Any]], None] | None = None
    keep: Callable[[int], None] | None = None


class Trainer:
    """Changes weights, in place.

    Args:
        parameters: what is trained, by name; their order is that in which the norm of the gradient is added up.
        optimizer: of these parameters.
        settings: updates, learning rate, clipping.
        worker: this process among its peers.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        settings: TrainerSettings,
        worker: WorkerInfo = SINGLE_WORKER,
    ) -> None:
        self.parameters, self.optimizer, self.settings, self.worker = dict(parameters), optimizer, settings, worker

    def restore(self, files: TrainingFiles) -> int:
        """Loads the newest checkpoint that is not damaged, where there is one; returns the updates done.

        Raises:
            DatError: a checkpoint of another run.
        """
        return files.checkpoints.load(lambda folder: load_checkpoint(folder, self.parameters, self.optimizer, files.identity))

    def run(self, objective: Objective, files: TrainingFiles, start: int) -> dict[str, Any]:
        """Takes the updates from `start` on.

        Args:
            objective: what each of them is.
            files: log and checkpoints.
            start: updates done, of `restore`.

        Returns:
            Metrics of the last update; empty where nothing was left to do.

        Raises:
            Diverged: see `Objective`. The last checkpoint stays.
        """
        settings, log = self.settings, files.log
        if log:
            log.start(start)
        metrics: dict[str, Any] = {}

        def write(folder: Path) -> None:
            save_checkpoint(folder, self.parameters, self.optimizer, update + 1, files.identity)

        for update in range(start, settings.schedule.updates):
            # A function of the update and the worker, so that no random state is restored.
            torch.manual_seed(seed_from_id(row_id("update", settings.seed, update, self.worker.rank)))
            metrics = objective.update(self, update)
            if log:
                log.append(metrics)
            if files.keep:
                # Before the checkpoint: who goes on from there does not come by here again.
                files.keep(update + 1)
            due = (update + 1) % settings.checkpoint_every == 0 or update + 1 == settings.schedule.updates
            # Asked after every update: the answer is an agreement of all workers.
            if files.checkpoints.urgent() or due:
                if log:
                    log.flush()
                files.checkpoints.save(update + 1, write)
            if files.on_update:
                files.on_update(metrics)
        return metrics

    def step(
        self,
        update: int,
        backward: Backward,
        check: Callable[[list[float]], None],
        diverged: Callable[[str, float], Diverged],
    ) -> StepResult:
        """One step of the optimizer: gradients, their sum over workers, clipping, AdamW.

        Args:
            update: its number, for the learning rate.
            backward: see `Backward`; called once more where the gradient overflows at a loss scale.
            check: raises `Diverged` where the sums over workers are not as they should be.
            diverged: the error that names a term and its value.

        Returns:
            Sums and norm, the same on every worker.

        Raises:
            Diverged: of `check`, or the gradient is not finite; the weights are as they were.
        """
        parameters, reduce = list(self.parameters.values()), self.worker.reduce
        longest = math.inf if self.settings.max_grad_norm is None else self.settings.max_grad_norm
        rate = self.settings.schedule.rate(update)
        for scale in self.settings.loss_scales:
            self.optimizer.zero_grad(set_to_none=True)
            sums = backward(scale)
            sum_gradients(parameters, reduce)
            reduce(sums)
            values = sums.tolist()
            check(values)
            # Of the sum over workers, so that all of them go on with the same scale.
            norm = nn.utils.clip_grad_norm_(parameters, longest).item()
            if math.isfinite(norm):
                break
        if not math.isfinite(norm):
            raise diverged(GRADIENT_NORM, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return StepResult(values, norm, rate, scale)


def sum_gradients(parameters: Sequence[nn.Parameter], reduce: Reduce) -> None:
    """Sums the gradients over workers in one message; a worker without rows takes part with zeros."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if reduce is no_reduce:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    reduce(flat)
    for gradient, piece in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(piece.view_as(gradient))
