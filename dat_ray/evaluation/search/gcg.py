"""Greedy coordinate gradient (GCG, arXiv 2307.15043): a suffix of ordinary tokens that makes the target response likely.

One step: the gradient of the response's cross-entropy at each suffix token's embedding says, to first order, which tokens
of the vocabulary would lower it; `search_width` suffixes with exchanged tokens are drawn from the best `top_k` of each
position and evaluated exactly; the best of them is the next suffix, whether or not it beats the last one.

Nothing of vocabulary width exists except the gradient's (suffix, vocabulary) scores: no one-hot tokens, and the output head
runs on response positions alone. What all candidates share in front of the suffix goes through the model once a search.

Shapes: S suffix tokens, W candidates, D embedding width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dat_ray.config.evaluation import GcgConfig
from dat_ray.errors import InputError
from dat_ray.evaluation.questions import SearchRequest
from dat_ray.evaluation.search.whitebox import Paused, Whitebox
from dat_ray.models.chat import ChatFormat, Encoded
from dat_ray.training.batches import Batch, collate
from dat_ray.training.network import Network, Prefix
from dat_ray.training.objectives import row_means, token_logprobs


@dataclass(frozen=True)
class Search:
    """What a search has found so far, and all that it goes on with.

    Attributes:
        prompts: user messages to ask the model with, in the order of the search; the last has the lowest loss seen.
        losses: lowest cross-entropy of the response among a step's candidates, nats a token; the start's comes first.
        model_calls: rows that went through the model.
        suffix: token ids of the current suffix.
        best: token ids of the suffix with the lowest loss.
        random: state of the generator.
    """

    prompts: list[str]
    losses: list[float]
    model_calls: int
    suffix: list[int]
    best: list[int]
    random: bytes

    @property
    def steps(self) -> int:
        """Steps that are done."""
        return len(self.losses) - 1


class Gcg:
    """GCG on one model.

    Args:
        network: the model, frozen.
        tokenizer: of the model.
        chat: its template.
        config: of the attack.
    """

    def __init__(self, network: Network, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, config: GcgConfig) -> None:
        self._network, self._chat, self._config = network, chat, config
        self._allowed = printable_tokens(tokenizer, network.embedding.weight.shape[0]).to(network.device)

    def search(self, goal: str, target: str, seed: int) -> Search:
        """Searches a suffix to a goal for a response.

        Args:
            goal: of the behavior.
            target: its affirmative response.
            seed: of the exchanges; the search depends on nothing else.
        """
        return self.advance(goal, target, self.begin(goal, target, seed), stop=lambda: False)

    def begin(self, goal: str, target: str, seed: int) -> Search:
        """A search before its first step; arguments as for `search`."""
        goal_ids = self._chat.user_ids(goal)
        suffix = self._start(goal, goal_ids)
        loss = self._losses(goal_ids, torch.tensor([suffix]), self._chat.response_ids(target))[0]
        return Search([], [loss], 1, suffix, suffix, _state_of(torch.Generator().manual_seed(seed)))

    def advance(self, goal: str, target: str, begun: Search, stop: Callable[[], bool]) -> Search:
        """Goes on with a search for a step and then until `stop()`, at most to its end; the result is that of one go."""
        config, rng = self._config, torch.Generator()
        rng.set_state(torch.frombuffer(bytearray(begun.random), dtype=torch.uint8))
        goal_ids, response = self._chat.user_ids(goal), self._chat.response_ids(target)
        suffix, best = torch.tensor(begun.suffix), torch.tensor(begun.best)
        losses, kept, calls = list(begun.losses), list(begun.prompts), begun.model_calls
        asked_at = [round(config.steps * (number + 1) / config.attempts) for number in range(config.attempts)]
        for step in range(begun.steps + 1, config.steps + 1):
            scores = self._scores(goal_ids, suffix, response)
            candidates = self._readable(goal, propose(suffix, scores, config, rng), suffix)
            found = self._losses(goal_ids, candidates, response)
            calls += 1 + len(candidates)
            winner = min(range(len(found)), key=found.__getitem__)
            suffix = candidates[winner]
            if found[winner] < min(losses):
                best = suffix
            losses.append(found[winner])
            kept += [self._text(goal, best)] * asked_at.count(step)
            if stop():
                break
        return Search(kept, losses, calls, suffix.tolist(), best.tolist(), _state_of(rng))

    def _start(self, goal: str, goal_ids: list[int]) -> list[int]:
        whole = self._chat.user_ids(f"{goal} {self._config.suffix}")
        if whole[: len(goal_ids)] != goal_ids or len(whole) == len(goal_ids):
            raise InputError("evaluation.gcg.suffix", self._config.suffix, "does not begin a new token after the goal")
        return whole[len(goal_ids) :]

    def _text(self, goal: str, suffix: Tensor) -> str:
        return goal + self._chat.text_after(suffix.tolist())

    def _readable(self, goal: str, candidates: Tensor, current: Tensor) -> Tensor:
        """Candidates that survive the way through text; the current suffix alone where none does."""
        width = len(candidates[0])
        kept = [row for row in candidates if self._chat.user_ids(self._text(goal, row))[-width:] == row.tolist()]
        return torch.stack(kept) if kept else current[None]

    def _batch(self, goal_ids: list[int], suffixes: Tensor, response: list[int]) -> Batch:
        before, between = self._chat.segments()
        low = len(before) + len(goal_ids)
        rows = []
        for suffix in suffixes.tolist():
            ids = [*before, *goal_ids, *suffix, *between, *response]
            # The suffix counts as the message, so that all before it is shared by every row.
            rows.append(Encoded(ids, (low, low + len(suffix)), (len(ids) - len(response), len(ids))))
        return collate(rows, share_prefix=True, device=self._network.device)

    @torch.no_grad()
    def _losses(self, goal_ids: list[int], suffixes: Tensor, response: list[int]) -> list[float]:
        """Cross-entropy of the response after each suffix (W, S), nats a token."""
        found: list[float] = []
        prefix = None
        for part in suffixes.split(self._config.batch_size):
            batch = self._batch(goal_ids, part, response)
            prefix = prefix or self._network.prefix(batch)
            found += self._entropies(batch, None, prefix).tolist()
        return found

    def _entropies(self, batch: Batch, delta: Tensor | None, prefix: Prefix | None) -> Tensor:
        out = self._network.response_logits(batch, delta, prefix)
        return -row_means(token_logprobs(out.logits, out.targets), out.rows, len(batch.ids))

    def _scores(self, goal_ids: list[int], suffix: Tensor, response: list[int]) -> Tensor:
        """First-order change of the loss by putting each token at each position (S, V); lower is better."""
        batch = self._batch(goal_ids, suffix[None], response)
        weight = self._network.embedding.weight
        delta = torch.zeros((1, *batch.ids.shape, weight.shape[1]), device=self._network.device, requires_grad=True)
        (gradient,) = torch.autograd.grad(self._entropies(batch, delta, None).sum(), delta)
        with torch.no_grad():
            scores = gradient[0, 0][batch.user[0]].to(weight.dtype) @ weight.T
        return scores.float().masked_fill(~self._allowed, float("inf")).cpu()


class GcgSearch:
    """GCG as a method of search, with the settings `evaluation.gcg`."""

    def __init__(self, whitebox: Whitebox) -> None:
        self._steps = whitebox.evaluation.gcg.steps
        self._gcg = Gcg(whitebox.network, whitebox.tokenizer, whitebox.chat, whitebox.evaluation.gcg)

    def advance(
        self, request: SearchRequest, row: Encoded, state: Search | None, stop: Callable[[], bool]
    ) -> dict[str, Any] | Paused:
        begun = state or self._gcg.begin(request.goal, request.target, request.seed)
        search = self._gcg.advance(request.goal, request.target, begun, stop)
        if search.steps < self._steps:
            return Paused(search)
        return {"prompts": search.prompts, "losses": search.losses, "model_calls": search.model_calls}


def _state_of(rng: torch.Generator) -> bytes:
    return bytes(rng.get_state().numpy())


def propose(suffix: Tensor, scores: Tensor, config: GcgConfig, rng: torch.Generator) -> Tensor:
    """Candidates (W, S): the suffix (S,) with `n_replace` positions exchanged for one of their `top_k` best tokens."""
    width, positions = config.search_width, len(suffix)
    best = (-scores).topk(min(config.top_k, scores.shape[1]), dim=1).indices
    exchanged = min(config.n_replace, positions)
    where = torch.rand(width, positions, generator=rng).argsort(dim=1)[:, :exchanged]
    which = torch.randint(best.shape[1], (width, exchanged), generator=rng)
    return suffix.repeat(width, 1).scatter(1, where, best[where, which])


def printable_tokens(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Tensor:
    """(V,) bool: tokens that are plain printable ASCII, as in the published attack; no special ones."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    # Where ids have gaps, the number of tokens is no bound of theirs.
    ids = sorted(i for i in set(tokenizer.get_vocab().values()) - special if i < vocabulary)
    allowed = torch.zeros(vocabulary, dtype=torch.bool)
    for i, text in zip(ids, tokenizer.batch_decode([[i] for i in ids]), strict=True):
        allowed[i] = bool(text) and text.isascii() and text.isprintable()
    return allowed
