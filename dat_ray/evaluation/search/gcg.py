"""Greedy coordinate gradient (GCG, arXiv 2307.15043): a suffix of ordinary tokens that makes the target response likely.

One step: the gradient of the response's cross-entropy at each suffix token's embedding says, to first order, which tokens
of the vocabulary would lower it; `search_width` suffixes with exchanged tokens are drawn from the best `top_k` of each
position and evaluated exactly; the best of them is the next suffix, whether or not it beats the last one.

Where no candidate survives the way through text, the published programs end with an error. Here candidates are drawn again
from twice as many tokens at each position, three times at most; a step in which none survives even so leaves the suffix as it
is, is counted, and the search goes on with other draws.

Shapes: S suffix tokens, W candidates, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dat_ray.config.evaluation import GcgConfig
from dat_ray.errors import InputError
from dat_ray.evaluation.search.suffix import Step, SuffixMethod, SuffixModel, SuffixSearch, Task, suffix_model
from dat_ray.evaluation.search.whitebox import Whitebox

# Further draws of a step whose candidates did not survive.
REDRAWS = 3


class GcgState(NamedTuple):
    """The current suffix, and the state of the generator."""

    suffix: list[int]
    random: bytes


class Gcg(SuffixSearch[GcgState]):
    """GCG on one model.

    Args:
        model: the model.
        config: of the attack.
    """

    def __init__(self, model: SuffixModel, config: GcgConfig) -> None:
        super().__init__(model, config.steps, config.attempts)
        self._config = config

    def start(self, task: Task, seed: int) -> Step[GcgState]:
        """The recipe's suffix."""
        suffix = self.model.suffix_of(task, f"{task.goal} {self._config.suffix}")
        if not suffix:
            raise InputError("evaluation.gcg.suffix", self._config.suffix, "does not begin a new token after the goal")
        [loss] = self.model.losses(task, [suffix], 1)
        return Step(GcgState(suffix, _state_of(torch.Generator().manual_seed(seed))), suffix, loss, 1, 0, 0)

    def step(self, task: Task, state: GcgState, number: int) -> Step[GcgState]:
        """A gradient, and the exact losses of the candidates that survive."""
        rng = torch.Generator()
        rng.set_state(torch.frombuffer(bytearray(state.random), dtype=torch.uint8))
        candidates, drawn = self._candidates(task, state.suffix, self.scores(task, state.suffix), rng)
        if not candidates:
            return Step(GcgState(state.suffix, _state_of(rng)), None, None, 1, drawn, 0)
        losses = self.model.losses(task, candidates, self._config.batch_size)
        winner = min(range(len(losses)), key=losses.__getitem__)
        after = GcgState(candidates[winner], _state_of(rng))
        return Step(after, candidates[winner], losses[winner], 1 + len(candidates), drawn, len(candidates))

    def scores(self, task: Task, suffix: list[int]) -> Tensor:
        """First-order change of the loss by putting each token at each position (S, V); lower is better."""
        _, gradient = self.model.gradient(task, suffix)
        weight = self.model.network.embedding.weight
        with torch.no_grad():
            scores = gradient.to(weight.dtype) @ weight.T
        return scores.float().masked_fill(~self.model.printable, float("inf")).cpu()

    def _candidates(self, task: Task, suffix: list[int], scores: Tensor, rng: torch.Generator) -> tuple[list[list[int]], int]:
        """Candidates that survive, and how many were looked at."""
        config, drawn = self._config, 0
        for draw in range(1 + REDRAWS):
            top_k = min(config.top_k << draw, int(self.model.printable.sum()))
            rows = propose(torch.tensor(suffix), scores, config, rng, top_k).tolist()
            drawn += len(rows)
            kept = [row for row in rows if self.model.survives(task, row)]
            if kept:
                return kept, drawn
        return [], drawn


class GcgSearch(SuffixMethod[GcgState]):
    """GCG as a method of search, with the settings `evaluation.gcg`."""

    def __init__(self, whitebox: Whitebox) -> None:
        super().__init__(Gcg(suffix_model(whitebox), whitebox.evaluation.gcg))


def _state_of(rng: torch.Generator) -> bytes:
    return bytes(rng.get_state().numpy())


def propose(suffix: Tensor, scores: Tensor, config: GcgConfig, rng: torch.Generator, top_k: int) -> Tensor:
    """Candidates (W, S): the suffix (S,) with `n_replace` positions exchanged for one of their `top_k` best tokens."""
    width, positions = config.search_width, len(suffix)
    best = (-scores).topk(top_k, dim=1).indices
    exchanged = min(config.n_replace, positions)
    where = torch.rand(width, positions, generator=rng).argsort(dim=1)[:, :exchanged]
    which = torch.randint(best.shape[1], (width, exchanged), generator=rng)
    return suffix.repeat(width, 1).scatter(1, where, best[where, which])
