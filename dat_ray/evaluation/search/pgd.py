"""PGD on relaxed tokens with discretization (arXiv 2402.09154): each suffix position is a mixture of the vocabulary's tokens.

One step: the gradient of the response's cross-entropy at the mixtures, cut to a length at each position; an Adam step; the
projection onto the simplex; the projection onto mixtures of bounded Gini index (Tsallis entropy with q = 2), which drives
each position toward one token. The largest token of each position is then the step's suffix, read back from its text, and
its exact loss decides which suffix is kept. After `patience` steps without a better one the search goes on from the best.

Schedules as in the published program: the bound on the entropy is tightened over `anneal_steps`; the rate is constant for
`constant_steps` and then swings from `rate` up to `peak_rate` in periods of `period` steps, the bound with it. Left out: its
scaling of the bound by the gap between relaxed and exact loss, and the mixing of suffixes between prompts attacked together.

Shapes: S suffix positions, D embedding width, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dat_ray.config.evaluation import PgdConfig
from dat_ray.diffusion.counter import uniform
from dat_ray.evaluation.search.suffix import Step, SuffixMethod, SuffixModel, SuffixSearch, Task, suffix_model
from dat_ray.evaluation.search.whitebox import Whitebox
from dat_ray.training.attack import IDS_AT_ONCE, TINY, Direction

# Stream of the counter-based random numbers, so that equal seeds elsewhere draw other numbers.
_START = 502


@dataclass(frozen=True)
class PgdState:
    """Where a search is.

    Attributes:
        mixtures: (S, V) float32, rows of the simplex, zero at tokens that are not printable.
        direction: Adam's moments.
        best_loss: of the best suffix so far.
        best_tokens: the largest token of each position at that step.
        stale: steps since then.
    """

    mixtures: Tensor
    direction: Direction
    best_loss: float
    best_tokens: Tensor
    stale: int


class Pgd(SuffixSearch[PgdState]):
    """PGD on one model.

    Args:
        model: the model.
        config: of the attack.
    """

    def __init__(self, model: SuffixModel, config: PgdConfig) -> None:
        super().__init__(model, config.steps, config.attempts)
        self._config = config
        self._table = embedding_table(model.network.embedding)

    def start(self, task: Task, seed: int) -> Step[PgdState]:
        """Uniformly drawn weights; the suffix that counts so far is none."""
        [loss] = self.model.losses(task, [[]], 1)
        allowed = self.model.printable
        positions = torch.arange(self._config.suffix_tokens, device=allowed.device)[:, None]
        vocabulary = torch.arange(len(allowed), device=allowed.device)
        weights = uniform(positions, seed, _START, vocabulary).float() * allowed
        mixtures = weights / weights.sum(dim=1, keepdim=True)
        state = PgdState(mixtures, Direction("adam"), math.inf, mixtures.argmax(dim=1), 0)
        return Step(state, [], loss, 1, 0, 0)

    def step(self, task: Task, state: PgdState, number: int) -> Step[PgdState]:
        """A gradient step on the mixtures, both projections, and the exact loss of the suffix they stand for."""
        config, allowed = self._config, self.model.printable
        mixtures = state.mixtures.to(allowed.device)
        mixed = (mixtures.to(self._table.dtype) @ self._table).float()
        _, gradient = self.model.gradient(task, mixtures.argmax(dim=1).tolist(), mixed)
        with torch.no_grad():
            slopes = clip_rows((gradient.to(self._table.dtype) @ self._table.T).float() * allowed, config.gradient_norm)
            direction = _on(state.direction, allowed.device)
            moved = mixtures - rate_at(number, config) * direction(slopes)
            moved = project_simplex(moved.masked_fill(~allowed, -torch.inf))
            moved = project_entropy(moved, entropy_at(number, config))
        tokens = moved.argmax(dim=1)
        # As text it may have other tokens; those are what is asked, so those are evaluated.
        suffix = self.model.suffix_of(task, self.model.text(task, tokens.tolist()))
        state = replace(state, mixtures=moved, direction=direction, stale=state.stale + 1)
        if suffix is None:
            return Step(self._patient(state), None, None, 1, 1, 0)
        [loss] = self.model.losses(task, [suffix], 1)
        if loss < state.best_loss:
            state = replace(state, best_loss=loss, best_tokens=tokens, stale=0)
        return Step(self._patient(state), suffix, loss, 2, 1, 1)

    def pack(self, state: PgdState) -> PgdState:
        """Tensors on the host."""
        moved = replace(state, mixtures=state.mixtures.cpu(), best_tokens=state.best_tokens.cpu())
        return replace(moved, direction=_on(state.direction, torch.device("cpu")))

    def _patient(self, state: PgdState) -> PgdState:
        if state.stale < self._config.patience or math.isinf(state.best_loss):
            return state
        best = nn.functional.one_hot(state.best_tokens.to(state.mixtures.device), state.mixtures.shape[1])
        return replace(state, mixtures=best.float(), stale=0)


class PgdSearch(SuffixMethod[PgdState]):
    """PGD as a method of search, with the settings `evaluation.pgd`."""

    def __init__(self, whitebox: Whitebox) -> None:
        super().__init__(Pgd(suffix_model(whitebox), whitebox.evaluation.pgd))


def _on(direction: Direction, device: torch.device) -> Direction:
    """A copy with its moments on a device: a search that is gone on with twice must not share them."""
    moved = copy.copy(direction)
    if isinstance(moved.mean, Tensor) and isinstance(moved.square, Tensor):
        moved.mean, moved.square = moved.mean.to(device), moved.square.to(device)
    return moved


@torch.no_grad()
def embedding_table(embedding: nn.Module) -> Tensor:
    """(V, D) what an embedding puts out for each token: its weights, times a factor in some families (Gemma)."""
    weight = embedding.weight
    assert isinstance(weight, Tensor)
    if type(embedding) is nn.Embedding:
        return weight
    ids = torch.arange(len(weight), device=weight.device)
    return torch.cat([embedding(part) for part in ids.split(IDS_AT_ONCE)])


def clip_rows(gradient: Tensor, norm: float | None) -> Tensor:
    """Each row (S, V) at most `norm` long; as it is without one."""
    if norm is None:
        return gradient
    return gradient * (norm / gradient.norm(dim=1, keepdim=True).clamp(min=TINY)).clamp(max=1.0)


def rate_at(step: int, config: PgdConfig) -> float:
    """Learning rate of a step, counted from 1: cosine with warm restarts, from `rate` to `peak_rate`."""
    after = step - 1 - config.constant_steps
    if after < 0:
        return config.rate
    swing = (1 + math.cos(math.pi * (after % config.period) / config.period)) / 2
    return config.peak_rate + (config.rate - config.peak_rate) * swing


def entropy_at(step: int, config: PgdConfig) -> float:
    """Strength of the entropy projection at a step, in [0, 1]: annealed, and in proportion to the rate."""
    annealed = config.entropy * min(1.0, (step - 1) / config.anneal_steps)
    return annealed * rate_at(step, config) / max(config.rate, config.peak_rate)


def project_simplex(values: Tensor) -> Tensor:
    """The nearest point of the simplex to each row (S, V), by sorting (Duchi et al. 2008); entries of -inf stay 0."""
    falling = values.sort(dim=1, descending=True).values
    count = torch.arange(1, values.shape[1] + 1, device=values.device)
    excess = falling.masked_fill(falling.isinf(), 0.0).cumsum(dim=1) - 1.0
    # The support is a beginning of the sorted row, for which this holds and behind which it does not.
    support = (falling * count > excess).sum(dim=1, keepdim=True)
    threshold = excess.gather(1, support - 1) / support
    return (values - threshold).clamp(min=0.0)


def project_entropy(mixtures: Tensor, strength: float) -> Tensor:
    """Rows of the simplex (S, V) moved away from their center until their Gini index is low enough.

    Over the d tokens of a row that have weight, 1 - sum p^2 is at most (1 - strength) (1 - 1/d) afterwards, unless the simplex
    is in the way: the row moves from the center c = 1/d straight through itself to the distance sqrt(strength (1 - 1/d)), and
    is then projected onto the simplex (algorithm 3 of the paper). A row that is far enough, or is its own center, stays.
    """
    held = mixtures > 0
    count = held.sum(dim=1, keepdim=True).to(mixtures.dtype)
    center = held / count
    radius = (strength * (1.0 - 1.0 / count)).sqrt()
    offset = mixtures - center
    distance = offset.norm(dim=1, keepdim=True)
    moved = project_simplex((center + offset * (radius / distance.clamp(min=TINY))).masked_fill(~held, -torch.inf))
    return torch.where((distance < radius) & (distance > 0), moved, mixtures)
