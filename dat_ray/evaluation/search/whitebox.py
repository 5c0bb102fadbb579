"""A model with its gradients: what GCG, the embedding attack and the drift on harmless answers run on, always in torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch

from dat_ray.config.evaluation import EvaluationConfig
from dat_ray.config.models import TargetConfig
from dat_ray.engines.pieces import by_rows
from dat_ray.engines.target_text import TargetText
from dat_ray.engines.workers import Unfinished
from dat_ray.errors import ends_engine, error_line
from dat_ray.evaluation.questions import SearchRequest
from dat_ray.models.adapters import load_adapter
from dat_ray.models.chat import ChatFormat, Encoded
from dat_ray.models.fit import Limits
from dat_ray.models.loading import load_causal_lm, load_tokenizer
from dat_ray.models.served import served_model
from dat_ray.training.batches import collate
from dat_ray.training.network import Network
from dat_ray.training.objectives import kl_divergence


class Paused(NamedTuple):
    """A search that is not done: all that it goes on with, picklable."""

    state: Any


class SearchMethod(Protocol):
    """A way to search, made once on each worker from its `Whitebox`."""

    def advance(self, request: SearchRequest, row: Encoded, state: Any, stop: Callable[[], bool]) -> Mapping[str, Any] | Paused:
        """Goes on with a search, for a step at least and then until `stop()`.

        Args:
            request: what to search for.
            row: its goal as the user's message, and its target as the response, tokenized.
            state: of `Paused`; None at the beginning.
            stop: whether the time is up.

        Returns:
            `prompts` or `completion`, `losses` and `model_calls` of schema SEARCHES, the same in one go or in many.
        """
        ...


class Begun(NamedTuple):
    """A search that is not done, and the seconds that it has taken."""

    state: Any
    seconds: float


class RowDrift(NamedTuple):
    """Of one row: mean over its response tokens of KL(base || model), in nats, and whether the response was cut for room."""

    value: float
    cut: bool


class Whitebox:
    """One target model in torch, weights frozen.

    Args:
        config: how the target is described; its backend is not read.
        threads: of torch on a CPU.
        adapter: LoRA adapter folder, or None.
        evaluation: settings of the attacks.

    Attributes:
        network, tokenizer, chat, text: of the model, for the methods of search.
    """

    def __init__(self, config: TargetConfig, threads: int, adapter: str | None, evaluation: EvaluationConfig) -> None:
        torch.set_num_threads(threads)
        self.name = config.model
        folder = served_model(config.model, "target.model", config.revision)
        base = load_causal_lm(folder, config.dtype, "target.model")
        self._adapted = None if adapter is None else load_adapter(base, adapter)
        model = base if self._adapted is None else self._adapted
        model.to("cuda" if torch.cuda.is_available() else "cpu").eval().requires_grad_(False)
        self.network = Network(model)
        tokenizer = load_tokenizer(folder, "target.model")
        self.tokenizer = tokenizer
        self.chat = ChatFormat(tokenizer, config)
        self.text = TargetText(config, folder)
        self.evaluation = evaluation
        self._methods: dict[Callable[[Whitebox], SearchMethod], SearchMethod] = {}

    def search(
        self, kind: Callable[[Whitebox], SearchMethod], request: SearchRequest, seconds: float, begun: Begun | None = None
    ) -> dict[str, Any] | Begun:
        """Columns of schema SEARCHES that a search fills in, or what it has after `seconds`, to go on with."""
        started = time.perf_counter()
        if kind not in self._methods:
            self._methods[kind] = kind(self)
        # Whole, as for a likelihood: an empty text, or a row that is too long, is named before the search begins.
        [row] = self.text.scored([request.goal], [request.target])
        state, before = begun or Begun(None, 0.0)
        found = self._methods[kind].advance(request, row, state, lambda: time.perf_counter() - started > seconds)
        spent = before + time.perf_counter() - started
        if isinstance(found, Paused):
            return Begun(found.state, spent)
        return {"prompts": None, "completion": None, **found, "seconds": spent, "error": None}

    @torch.inference_mode()
    def complete(self, embeddings: torch.Tensor) -> str:
        """The greedy answer after a prompt's embeddings (1, T, D)."""
        ids = self.network.model.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device),
            max_new_tokens=self.evaluation.max_new_tokens,
            do_sample=False,
            eos_token_id=list(self.text.stop_ids),
            pad_token_id=self.text.pad_id,
        )
        return self.text.completion(ids[0].tolist()).text

    @torch.inference_mode()
    def drift(self, prompt: str, response: str, limits: Limits) -> RowDrift | None:
        """Drift on one row, cut as in training; None where its prompt leaves too little room for a response.

        It needs an adapter, which is off for the base.
        """
        assert self._adapted is not None, "a model without an adapter is the base"
        row = self.chat.encode(prompt, response, limits)
        if row is None:
            return None
        batch = collate([row], share_prefix=False, device=self.network.device)
        with self._adapted.disable_adapter():
            base = self.network.response_logits(batch).logits
        value = kl_divergence(base, self.network.response_logits(batch).logits).mean().item()
        return RowDrift(value, cut=row.beyond_room > 0)


def _no_search(reason: str) -> dict[str, Any]:
    return {"prompts": None, "completion": None, "error": f"search: {reason}"}


@dataclass(frozen=True)
class SearchCall:
    """A piece of one search.

    Attributes:
        kind: the search.
        request: what to search for.
        seconds: after which it returns what it has.
        begun: what it has so far.
    """

    kind: Callable[[Whitebox], SearchMethod]
    request: SearchRequest
    seconds: float
    begun: Begun | None = None


@dataclass(frozen=True)
class DriftCall:
    """Pairs of prompt and response to measure the drift on, cut to the limits of training."""

    pairs: Sequence[tuple[str, str]]
    limits: Limits


@by_rows(failed=_no_search)
def search_slice(engine: Whitebox, asked: SearchCall) -> dict[str, Any] | Unfinished:
    """`Whitebox.search`, for a pool of workers; one that fails costs itself."""
    try:
        found = engine.search(asked.kind, asked.request, asked.seconds, asked.begun)
    except Exception as error:
        if ends_engine(error):
            raise
        # A search that cannot be done (a goal too long, say) is its row's result.
        return _no_search(error_line(error))
    return Unfinished((replace(asked, begun=found),)) if isinstance(found, Begun) else found


def drift_all(engine: Whitebox, asked: DriftCall) -> list[RowDrift | None]:
    """`Whitebox.drift` of each pair."""
    return [engine.drift(prompt, response, asked.limits) for prompt, response in asked.pairs]
