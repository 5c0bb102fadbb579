"""The target model in plain transformers: the reference for the vLLM backend, and the one without extra packages.

Shapes: B rows of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from dat_ray.config.models import TargetConfig
from dat_ray.diffusion.counter import gumbel
from dat_ray.engines.base import Completion, require_seeds
from dat_ray.engines.target_text import TargetText
from dat_ray.models.adapters import load_adapter
from dat_ray.models.loading import load_causal_lm
from dat_ray.models.remote import local_adapter

# Stream of the counter-based random numbers, so that equal seeds elsewhere draw other numbers.
_ANSWER = 401


class TorchTarget:
    """Chat completions and response likelihoods from a transformers model.

    Args:
        config: of the target.
        folder: model folder or hub id.
        threads: of torch on a CPU.
        adapter: folder of a PEFT adapter of this model, or None.
    """

    switches_adapters = True

    def __init__(self, config: TargetConfig, folder: str, threads: int, adapter: str | None = None) -> None:
        torch.set_num_threads(threads)
        self.name = config.model
        self._batch_size = config.batch_size
        self._text = TargetText(config, folder)
        base = load_causal_lm(folder, config.dtype, "target.model")
        self._model_config = base.config
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._adapter: str | None = None
        self._model: nn.Module = base.to(self._device).eval()
        self.use_adapter(adapter)

    def use_adapter(self, adapter: str | None) -> None:
        """Goes on with another adapter of the same model, as an engine that was started with it.

        Args:
            adapter: folder or URI of a PEFT adapter; None for the model as it is.

        Raises:
            InputError: an incomplete folder, or an adapter of another model; the model is then as it is.
        """
        if adapter == self._adapter:
            return
        if isinstance(self._model, PeftModel):
            self._model, self._adapter = self._model.unload(), None
        if adapter is not None:
            base = cast(PreTrainedModel, self._model)
            self._model = load_adapter(base, local_adapter(adapter)).to(self._device).eval()
        self._adapter = adapter

    def complete(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        prefills: Sequence[str] | None = None,
        histories: Sequence[Sequence[str]] | None = None,
    ) -> list[Completion]:
        """See `TargetModel`. A row's answer depends on its prompt and seed only."""
        row_seeds = require_seeds(temperature, seeds, len(prompts)) or [0] * len(prompts)
        rows = self._text.prompt_ids(prompts, prefills, histories)
        budgets = [self._text.answer_budget(row, max_new_tokens) for row in rows]
        answers: list[list[int]] = [[] for _ in rows]
        for batch in self._by_length([len(row) for row in rows]):
            generated = self._generate(
                [rows[i] for i in batch], [budgets[i] for i in batch], temperature, [row_seeds[i] for i in batch]
            )
            for i, answer in zip(batch, generated, strict=True):
                answers[i] = answer
        begun = prefills or [""] * len(rows)
        return [self._text.completion(answer, prefill) for answer, prefill in zip(answers, begun, strict=True)]

    def logprob(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """See `TargetModel`."""
        rows = self._text.scored(prompts, responses)
        means = [0.0] * len(rows)
        for batch in self._by_length([len(row.ids) for row in rows]):
            chosen = self._token_logprobs([rows[i].ids for i in batch], [rows[i].response_span for i in batch])
            for i, logprobs in zip(batch, chosen, strict=True):
                means[i] = logprobs.mean().item()
        return means

    def _by_length(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Row numbers in batches of similar length, so that little is padding."""
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        for start in range(0, len(order), self._batch_size):
            yield order[start : start + self._batch_size]

    @torch.inference_mode()
    def _token_logprobs(self, rows: Sequence[list[int]], spans: Sequence[tuple[int, int]]) -> list[Tensor]:
        """log p of the tokens in each row's span, float64; the head runs on no position before the first span.

        Padding is on the right, where no causal position sees it.
        """
        length = max(map(len, rows))
        ids = torch.tensor([row + [self._text.pad_id] * (length - len(row)) for row in rows], device=self._device)
        first, last = min(low for low, _ in spans) - 1, max(high for _, high in spans) - 1
        positions = torch.arange(first, last, device=self._device)
        logits = self._model(input_ids=ids, use_cache=False, logits_to_keep=positions).logits
        logprobs = []
        for b, (low, high) in enumerate(spans):
            predicted = logits[b, low - 1 - first : high - 1 - first].float().log_softmax(-1)
            logprobs.append(predicted.gather(-1, ids[b, low:high, None])[:, 0].double())
        return logprobs

    @torch.inference_mode()
    def _generate(
        self, rows: Sequence[list[int]], budgets: Sequence[int], temperature: float, seeds: Sequence[int]
    ) -> list[list[int]]:
        """Answers with a key-value cache; prompts are padded on the left, and a finished row leaves the batch."""
        lengths = torch.tensor([len(row) for row in rows], device=self._device)
        width = int(lengths.max())
        ids = torch.tensor([[self._text.pad_id] * (width - len(row)) + row for row in rows], device=self._device)
        mask = torch.arange(width, device=self._device)[None] >= (width - lengths)[:, None]
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._model_config)
        row_seeds = torch.tensor(list(seeds), dtype=torch.int64, device=self._device)
        answers: list[list[int]] = [[] for _ in rows]
        active = list(range(len(rows)))
        step = 0
        while True:
            logits = self._model(
                input_ids=ids,
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            chosen = _choose(logits.float(), temperature, row_seeds, step)
            stays = []
            for b, token in enumerate(chosen.tolist()):
                answer = answers[active[b]]
                answer.append(token)
                if token not in self._text.stop_ids and len(answer) < budgets[active[b]]:
                    stays.append(b)
            if not stays:
                return answers
            if len(stays) < len(active):
                keep = torch.tensor(stays, device=self._device)
                cache.batch_select_indices(keep)
                chosen, mask, positions, row_seeds = chosen[keep], mask[keep], positions[keep], row_seeds[keep]
                active = [active[b] for b in stays]
            ids = chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            positions = positions[:, -1:] + 1
            step += 1


def _choose(logits: Tensor, temperature: float, seeds: Tensor, step: int) -> Tensor:
    """Next tokens (B,) from logits (B, V): the argmax, or a draw by the Gumbel trick with noise of (seed, step) only."""
    if temperature == 0.0:
        return logits.argmax(-1)
    vocabulary = torch.arange(logits.shape[-1], device=logits.device)
    return (logits / temperature + gumbel(seeds[:, None], _ANSWER, step, vocabulary)).argmax(-1)
