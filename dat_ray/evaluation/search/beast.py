"""BEAST (arXiv 2402.15570): a suffix drawn from the target's own next-token distribution by beam search, without gradients.

One step makes every beam a token longer: `branches` different tokens are drawn behind each beam from p(token | goal, beam) in
the user message (published: temperature 1, the whole distribution, without replacement), every extension is scored by the
exact cross-entropy of the response behind it, and the best `beams` of all go on. The first token is drawn `beams` times behind
the goal alone. A suffix of any length counts: what is asked is the best one met.

A token whose text does not come back as that token is passed over for the next draw, so that the draws are those of the
distribution over the tokens that survive. A step that finds none leaves its beams as they are and is counted.

Shapes: W beams, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dat_ray.config.evaluation import BeastConfig
from dat_ray.diffusion.counter import gumbel
from dat_ray.evaluation.search.suffix import Step, SuffixMethod, SuffixModel, SuffixSearch, Task, suffix_model
from dat_ray.evaluation.search.whitebox import Whitebox

# Stream of the counter-based random numbers, so that equal seeds elsewhere draw other numbers.
_TOKENS = 501
# Draws that are looked at for one that is wanted: with most tokenizers nearly all survive.
DRAWS_PER_BRANCH = 4


class BeastState(NamedTuple):
    """The beams, best first, and the seed of all draws."""

    beams: list[list[int]]
    seed: int


class Beast(SuffixSearch[BeastState]):
    """BEAST on one model.

    Args:
        model: the model.
        config: of the attack.
    """

    def __init__(self, model: SuffixModel, config: BeastConfig) -> None:
        super().__init__(model, config.suffix_tokens, config.attempts)
        self._config = config

    def start(self, task: Task, seed: int) -> Step[BeastState]:
        """The goal alone."""
        [loss] = self.model.losses(task, [[]], 1)
        return Step(BeastState([[]], seed), [], loss, 1, 0, 0)

    def step(self, task: Task, state: BeastState, number: int) -> Step[BeastState]:
        """Every beam a token longer, and the best of the extensions."""
        config, beams = self._config, state.beams
        logits = self.model.next_logits(task, beams, config.batch_size).masked_fill(~self.model.ordinary, -torch.inf)
        wanted = config.beams if beams == [[]] else config.branches
        most = min(wanted * DRAWS_PER_BRANCH, int(self.model.ordinary.sum()))
        candidates, drawn = [], 0
        for beam, tokens in zip(beams, draw(logits, state.seed, number, most).tolist(), strict=True):
            kept: list[list[int]] = []
            for token in tokens:
                if len(kept) == wanted:
                    break
                drawn += 1
                if self.model.survives(task, [*beam, token]):
                    kept.append([*beam, token])
            candidates += kept
        if not candidates:
            return Step(state, None, None, len(beams), drawn, 0)
        losses = self.model.losses(task, candidates, config.batch_size)
        order = sorted(range(len(losses)), key=losses.__getitem__)[: config.beams]
        after = BeastState([candidates[i] for i in order], state.seed)
        calls = len(beams) + len(candidates)
        return Step(after, candidates[order[0]], losses[order[0]], calls, drawn, len(candidates))


class BeastSearch(SuffixMethod[BeastState]):
    """BEAST as a method of search, with the settings `evaluation.beast`."""

    def __init__(self, whitebox: Whitebox) -> None:
        super().__init__(Beast(suffix_model(whitebox), whitebox.evaluation.beast))


def draw(logits: Tensor, seed: int, step: int, count: int) -> Tensor:
    """Tokens (W, count) drawn without replacement from softmax(logits) (W, V), in the order of drawing.

    The largest of logits + Gumbel noise are such draws (Gumbel top-k, arXiv 1903.06059). The noise depends on (seed, step, row)
    alone, whatever the device or the batch.
    """
    rows = torch.arange(len(logits), device=logits.device)[:, None]
    vocabulary = torch.arange(logits.shape[1], device=logits.device)
    noisy = logits + gumbel(rows, seed, _TOKENS, step, vocabulary)
    return noisy.topk(count, dim=1).indices
