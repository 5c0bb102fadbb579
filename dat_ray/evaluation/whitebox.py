"""A model with its gradients: what GCG, the embedding attack and the drift on retain data run on, always in torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from dat_ray.config.evaluation import EvaluationConfig
from dat_ray.config.models import TargetConfig
from dat_ray.engines.target_text import TargetText
from dat_ray.engines.workers import Unfinished
from dat_ray.errors import ends_engine, error_line
from dat_ray.evaluation.attacks.embedding import attack_embeddings
from dat_ray.evaluation.attacks.gcg import Gcg, Search
from dat_ray.models.adapters import load_adapter
from dat_ray.models.chat import ChatFormat
from dat_ray.models.embedded import resolve_model
from dat_ray.models.fit import Limits
from dat_ray.models.loading import load_causal_lm, load_tokenizer
from dat_ray.training.batches import collate
from dat_ray.training.network import Network
from dat_ray.training.objectives import kl_divergence


@dataclass(frozen=True)
class SearchRequest:
    """One behavior to search for.

    Attributes:
        search_id: id of the row.
        goal: of the behavior.
        target: its affirmative response.
        seed: of the search.
    """

    search_id: str
    goal: str
    target: str
    seed: int


class Begun(NamedTuple):
    """A search that is not done: what it has found so far, and the seconds that it has taken."""

    search: Search
    seconds: float


class Drift(NamedTuple):
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
    """

    def __init__(self, config: TargetConfig, threads: int, adapter: str | None, evaluation: EvaluationConfig) -> None:
        torch.set_num_threads(threads)
        self.name = config.model
        folder = resolve_model(config.model, "target.model")
        base = load_causal_lm(folder, config.dtype, "target.model")
        self._adapted = None if adapter is None else load_adapter(base, adapter)
        model = base if self._adapted is None else self._adapted
        model.to("cuda" if torch.cuda.is_available() else "cpu").eval().requires_grad_(False)
        self._network = Network(model)
        tokenizer = load_tokenizer(folder, "target.model")
        self._chat = ChatFormat(tokenizer, config)
        self._text = TargetText(config, folder)
        self._evaluation = evaluation
        self._gcg = Gcg(self._network, tokenizer, self._chat, evaluation.gcg)

    def search(self, attack: str, request: SearchRequest, seconds: float, begun: Begun | None = None) -> dict[str, Any] | Begun:
        """Columns of schema SEARCHES that a search fills in, or what it has after `seconds`, to go on with."""
        started = time.perf_counter()
        # Whole, as for a likelihood: an empty text, or a row that is too long, is named before the search begins.
        [row] = self._text.scored([request.goal], [request.target])
        found: dict[str, Any] = {"prompts": None, "completion": None}
        before = 0.0
        if attack == "gcg":
            goal, target = request.goal, request.target
            search, before = begun or Begun(self._gcg.begin(goal, target, request.seed), 0.0)
            search = self._gcg.advance(goal, target, search, stop=lambda: time.perf_counter() - started > seconds)
            if search.steps < self._evaluation.gcg.steps:
                return Begun(search, before + time.perf_counter() - started)
            found |= {"prompts": search.prompts, "losses": search.losses, "model_calls": search.model_calls}
        else:
            config = self._evaluation.embedding.attack
            embeddings, losses = attack_embeddings(self._network, row, config)
            found |= {"completion": self._complete(embeddings), "losses": losses, "model_calls": config.steps + 2}
        return found | {"seconds": before + time.perf_counter() - started, "error": None}

    @torch.inference_mode()
    def _complete(self, embeddings: torch.Tensor) -> str:
        """The greedy answer after a prompt's embeddings (1, T, D)."""
        ids = self._network.model.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device),
            max_new_tokens=self._evaluation.max_new_tokens,
            do_sample=False,
            eos_token_id=list(self._text.stop_ids),
            pad_token_id=self._text.pad_id,
        )
        return self._text.completion(ids[0].tolist()).text

    @torch.inference_mode()
    def drift(self, prompt: str, response: str, limits: Limits) -> Drift | None:
        """Drift on one row, cut as in training; None where its prompt leaves too little room for a response.

        It needs an adapter, which is off for the base.
        """
        assert self._adapted is not None, "a model without an adapter is the base"
        row = self._chat.encode(prompt, response, limits)
        if row is None:
            return None
        batch = collate([row], share_prefix=False, device=self._network.device)
        with self._adapted.disable_adapter():
            base = self._network.response_logits(batch).logits
        value = kl_divergence(base, self._network.response_logits(batch).logits).mean().item()
        return Drift(value, cut=row.beyond_room > 0)


def search_slice(
    engine: Whitebox, attack: str, request: SearchRequest, seconds: float, begun: Begun | None = None
) -> dict[str, Any] | Unfinished:
    """`Whitebox.search`, for a pool of workers; one that fails costs itself."""
    try:
        found = engine.search(attack, request, seconds, begun)
    except Exception as error:
        if ends_engine(error):
            raise
        # A search that cannot be done (a goal too long, say) is its row's result.
        return {"prompts": None, "completion": None, "error": f"search: {error_line(error)}"}
    return Unfinished((attack, request, seconds, found)) if isinstance(found, Begun) else found


def drift_all(engine: Whitebox, rows: Sequence[tuple[str, str]], limits: Limits) -> list[Drift | None]:
    """`Whitebox.drift` of each (prompt, response)."""
    return [engine.drift(prompt, response, limits) for prompt, response in rows]
