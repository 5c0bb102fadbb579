"""What the searches for a suffix have in common: the model seen from the suffix, and a search's bookkeeping.

A suffix stands behind the goal, in the same user message. It is searched as tokens and asked as text, so only a suffix counts
that comes back from its text token by token ("survives"): the loss of any other is the loss of a prompt that nobody can send.

Nothing of vocabulary width exists on all positions: the output head runs on response positions alone. What all candidates
share in front of the suffix goes through the model once a call.

Shapes: S suffix tokens, W candidates, D embedding width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dat_ray.evaluation.questions import SearchRequest
from dat_ray.evaluation.search.whitebox import Paused, Whitebox
from dat_ray.models.chat import ChatFormat, Encoded
from dat_ray.training.batches import Batch, collate
from dat_ray.training.network import Network, Prefix
from dat_ray.training.objectives import row_means, token_logprobs

State = TypeVar("State")


@dataclass(frozen=True)
class Task:
    """What is searched for: token ids of the goal and of the response, and the goal's text."""

    goal: str
    goal_ids: list[int]
    response: list[int]


class SuffixModel:
    """A frozen model, asked about suffixes.

    Args:
        network: the model.
        tokenizer: of the model.
        chat: its template.

    Attributes:
        ordinary: (V,) bool, tokens that a text can hold: no special ones, none that the tokenizer lacks.
        printable: (V,) bool, those of them that are printable ASCII, as in the published GCG.
    """

    def __init__(self, network: Network, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> None:
        self.network, self._chat = network, chat
        vocabulary = network.embedding.weight.shape[0]
        self.ordinary = ordinary_tokens(tokenizer, vocabulary).to(network.device)
        self.printable = printable_tokens(tokenizer, vocabulary).to(network.device)

    def task(self, goal: str, target: str) -> Task:
        """A behavior's goal and its affirmative response."""
        return Task(goal, self._chat.user_ids(goal), self._chat.response_ids(target))

    def text(self, task: Task, suffix: Sequence[int]) -> str:
        """The user message: goal and suffix."""
        return task.goal + self._chat.text_after(list(suffix))

    def suffix_of(self, task: Task, message: str) -> list[int] | None:
        """Tokens behind the goal's in a message that begins with it; None where the tokenizer joins the two."""
        ids, length = self._chat.user_ids(message), len(task.goal_ids)
        return ids[length:] if ids[:length] == task.goal_ids else None

    def survives(self, task: Task, suffix: Sequence[int]) -> bool:
        """Whether the message's text has the very tokens that were searched."""
        return self.suffix_of(task, self.text(task, suffix)) == list(suffix)

    @torch.no_grad()
    def losses(self, task: Task, suffixes: Sequence[Sequence[int]], batch_size: int) -> list[float]:
        """Cross-entropy of the response after each of W suffixes of one length, nats a token."""
        found: list[float] = []
        prefix = None
        for start in range(0, len(suffixes), batch_size):
            batch = self._batch(task, suffixes[start : start + batch_size])
            prefix = prefix or self.network.prefix(batch)
            found += self._entropies(batch, None, prefix).tolist()
        return found

    def gradient(self, task: Task, suffix: Sequence[int], mixture: Tensor | None = None) -> tuple[float, Tensor]:
        """The response's cross-entropy, nats a token, and its gradient (S, D) at the suffix's embeddings.

        Args:
            task: the behavior.
            suffix: S tokens.
            mixture: (S, D) float32, embeddings that take the place of the tokens' own.
        """
        batch = self._batch(task, [suffix])
        embedding = self.network.embedding
        delta = torch.zeros((1, *batch.ids.shape, embedding.weight.shape[1]), device=self.network.device)
        if mixture is not None:
            with torch.no_grad():
                delta[0, 0, batch.user[0]] = mixture - embedding(batch.ids[0, batch.user[0]]).float()
        delta.requires_grad_(True)
        entropies = self._entropies(batch, delta, None)
        (gradient,) = torch.autograd.grad(entropies.sum(), delta)
        return entropies.item(), gradient[0, 0][batch.user[0]]

    @torch.no_grad()
    def next_logits(self, task: Task, suffixes: Sequence[Sequence[int]], batch_size: int) -> Tensor:
        """Logits (W, V) float32 of the token that the model would go on with, in the user message, behind each suffix."""
        before, _ = self._chat.segments()
        low = len(before) + len(task.goal_ids)
        found, prefix = [], None
        for start in range(0, len(suffixes), batch_size):
            rows = []
            for suffix in suffixes[start : start + batch_size]:
                ids = [*before, *task.goal_ids, *suffix]
                # The last token stands for the one to come: the head runs on the position before it.
                rows.append(Encoded([*ids, 0], (low - 1, len(ids)), (len(ids), len(ids) + 1)))
            batch = collate(rows, share_prefix=True, device=self.network.device)
            prefix = prefix or self.network.prefix(batch)
            found.append(self.network.response_logits(batch, None, prefix).logits.float())
        return torch.cat(found)

    def _batch(self, task: Task, suffixes: Sequence[Sequence[int]]) -> Batch:
        before, between = self._chat.segments()
        low = len(before) + len(task.goal_ids)
        rows = []
        for suffix in suffixes:
            ids = [*before, *task.goal_ids, *suffix, *between, *task.response]
            # The suffix counts as the message, so that all before it is shared by every row.
            rows.append(Encoded(ids, (low, low + len(suffix)), (len(ids) - len(task.response), len(ids))))
        return collate(rows, share_prefix=True, device=self.network.device)

    def _entropies(self, batch: Batch, delta: Tensor | None, prefix: Prefix | None) -> Tensor:
        out = self.network.response_logits(batch, delta, prefix)
        return -row_means(token_logprobs(out.logits, out.targets), out.rows, len(batch.ids))


def ordinary_tokens(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Tensor:
    """(V,) bool: tokens of the tokenizer that are not special."""
    # Where ids have gaps, the number of tokens is no bound of theirs.
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    found = torch.zeros(vocabulary, dtype=torch.bool)
    found[[i for i in set(tokenizer.get_vocab().values()) - special if i < vocabulary]] = True
    return found


def printable_tokens(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Tensor:
    """(V,) bool: ordinary tokens that are plain printable ASCII."""
    ids = ordinary_tokens(tokenizer, vocabulary).nonzero().flatten().tolist()
    allowed = torch.zeros(vocabulary, dtype=torch.bool)
    for i, text in zip(ids, tokenizer.batch_decode([[i] for i in ids]), strict=True):
        allowed[i] = bool(text) and text.isascii() and text.isprintable()
    return allowed


@dataclass(frozen=True)
class Step(Generic[State]):
    """What one step of a search gave.

    Attributes:
        state: what the next step goes on with.
        suffix: the step's best one; None where none of its candidates survived.
        loss: of that suffix, nats a token.
        calls: rows that went through the model.
        drawn: candidates whose text was looked at.
        survived: those of them that came back from their text token by token.
    """

    state: State
    suffix: list[int] | None
    loss: float | None
    calls: int
    drawn: int
    survived: int


@dataclass(frozen=True)
class Search(Generic[State]):
    """What a search has found so far, and all that it goes on with.

    Attributes:
        prompts: user messages to ask the model with, in the order of the search; the last has the lowest loss seen.
        prompt_calls: rows that had gone through the model when each of them was known.
        losses: lowest cross-entropy of the response among a step's candidates, nats a token; the start's comes first. Where
            none of them survived, the one before.
        model_calls: rows that went through the model.
        drawn: candidates of each step whose text was looked at.
        survived: those of them that came back from their text; 0: the step had nothing to choose from.
        best: token ids of the suffix with the lowest loss.
        state: of the search, on the host.
    """

    prompts: list[str]
    prompt_calls: list[int]
    losses: list[float]
    model_calls: int
    drawn: list[int]
    survived: list[int]
    best: list[int]
    state: State

    @property
    def steps(self) -> int:
        """Steps that are done."""
        return len(self.losses) - 1


class SuffixSearch(ABC, Generic[State]):
    """A search on one model, in steps that can be parted by a deadline.

    Args:
        model: the model.
        steps: of a whole search.
        attempts: prompts to ask with, evenly spaced over the steps, the last step's among them.
    """

    def __init__(self, model: SuffixModel, steps: int, attempts: int) -> None:
        self.model, self.steps = model, steps
        self._asked_at = [round(steps * (number + 1) / attempts) for number in range(attempts)]

    def search(self, goal: str, target: str, seed: int) -> Search[State]:
        """Searches a suffix to a goal for a response.

        Args:
            goal: of the behavior.
            target: its affirmative response.
            seed: of the search, which depends on nothing else.
        """
        return self.advance(goal, target, self.begin(goal, target, seed), stop=lambda: False)

    def begin(self, goal: str, target: str, seed: int) -> Search[State]:
        """A search before its first step; arguments as for `search`."""
        first = self.start(self.model.task(goal, target), seed)
        assert first.suffix is not None
        assert first.loss is not None
        return Search([], [], [first.loss], first.calls, [], [], first.suffix, self.pack(first.state))

    def advance(self, goal: str, target: str, begun: Search[State], stop: Callable[[], bool]) -> Search[State]:
        """Goes on with a search for a step and then until `stop()`, at most to its end; the result is that of one go."""
        task, state, best, calls = self.model.task(goal, target), begun.state, begun.best, begun.model_calls
        prompts, prompt_calls, losses = list(begun.prompts), list(begun.prompt_calls), list(begun.losses)
        drawn, survived = list(begun.drawn), list(begun.survived)
        for number in range(begun.steps + 1, self.steps + 1):
            step = self.step(task, state, number)
            state, calls = step.state, calls + step.calls
            if step.suffix is not None and step.loss is not None and step.loss < min(losses):
                best = step.suffix
            losses.append(losses[-1] if step.loss is None else step.loss)
            drawn.append(step.drawn)
            survived.append(step.survived)
            due = self._asked_at.count(number)
            prompts += [self.model.text(task, best)] * due
            prompt_calls += [calls] * due
            if stop():
                break
        return Search(prompts, prompt_calls, losses, calls, drawn, survived, best, self.pack(state))

    def pack(self, state: State) -> State:
        """A state as it travels to another process."""
        return state

    @abstractmethod
    def start(self, task: Task, seed: int) -> Step[State]:
        """What there is before the first step."""

    @abstractmethod
    def step(self, task: Task, state: State, number: int) -> Step[State]:
        """One step, counted from 1."""


# Columns of schema SEARCHES that a search for a suffix fills in.
SEARCH_COLUMNS = ("prompts", "prompt_calls", "losses", "model_calls", "drawn", "survived")


class SuffixMethod(Generic[State]):
    """A search for a suffix as a `SearchMethod` of `dat_ray.evaluation.search.whitebox`.

    Args:
        search: on the worker's model.
    """

    def __init__(self, search: SuffixSearch[State]) -> None:
        self._search = search

    def advance(
        self, request: SearchRequest, row: Encoded, state: Search[State] | None, stop: Callable[[], bool]
    ) -> dict[str, Any] | Paused:
        """See `SearchMethod.advance`."""
        begun = state or self._search.begin(request.goal, request.target, request.seed)
        search = self._search.advance(request.goal, request.target, begun, stop)
        return Paused(search) if search.steps < self._search.steps else {name: getattr(search, name) for name in SEARCH_COLUMNS}


def suffix_model(whitebox: Whitebox) -> SuffixModel:
    """A worker's model, seen from the suffix."""
    return SuffixModel(whitebox.network, whitebox.tokenizer, whitebox.chat)
