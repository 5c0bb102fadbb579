"""A causal language model as training uses it: prompt embeddings in, logits of response tokens out.

Two exact savings. The output head runs on response positions only, so that no tensor of vocabulary width
exists on prompt positions. And the tokens before the user message, which are the same in every row, go through
the model once a batch instead of once a row: the rows read their keys and values (gradients flow into them).

Shapes: B rows, T positions, P shared leading tokens, D width, N selected response tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from dat_ray.diffusion.backbone import base_model, output_head
from dat_ray.errors import DatError
from dat_ray.training.batches import Batch

# Keys and values (1, heads, P, width of a head) of every layer.
Prefix = list[tuple[Tensor, Tensor]]

# float32 differs by 1e-5 between two ways to the same logits; bfloat16 keeps 8 bits of them.
HEAD_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}


@dataclass(frozen=True)
class ResponseLogits:
    """Predictions of the response tokens of a batch, row after row.

    Attributes:
        logits: (N, V), at the position before each response token.
        targets: (N,) int64, the response tokens.
        rows: (N,) int64, the row of each.
    """

    logits: Tensor
    targets: Tensor
    rows: Tensor


class Network:
    """The parts of a `*ForCausalLM`, with its adapter.

    Args:
        model: a PEFT model on a causal language model of transformers.

    Raises:
        DatError: the model does more to its logits than one linear head, which this module would leave out.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.base = base_model(model)
        self.decoder = getattr(self.base, self.base.base_model_prefix)
        self.head = output_head(model)
        self.embedding = self.base.get_input_embeddings()
        layers = DynamicCache(config=self.base.config).layers
        self._can_share = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
        self._check_head()

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters by name, in a fixed order."""
        return dict(sorted((name, p) for name, p in self.model.named_parameters() if p.requires_grad))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No dropout, and no parameter collects a gradient: the state in which the model is attacked."""
        training, trainable = self.model.training, self.trainable()
        self.model.eval()
        for parameter in trainable.values():
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trainable.values():
                parameter.requires_grad_(True)
            self.model.train(training)

    def prefix(self, batch: Batch) -> Prefix | None:
        """Keys and values of the tokens that all rows share; None without any."""
        if batch.shared == 0 or not self._can_share:
            return None
        cache = DynamicCache(config=self.base.config)
        self.decoder(input_ids=batch.ids[:1, : batch.shared], past_key_values=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def response_logits(self, batch: Batch, delta: Tensor | None = None, prefix: Prefix | None = None) -> ResponseLogits:
        """Runs the batch and predicts its response tokens.

        Args:
            batch: B rows.
            delta: (B, T, D) float32, added to the embeddings; zero on the shared tokens.
            prefix: of `self.prefix(batch)` under the same weights, where it was computed already.
        """
        prefix = prefix or self.prefix(batch)
        start = batch.shared if prefix else 0
        embeddings = self.embedding(batch.ids[:, start:])
        if delta is not None:
            # The sum is rounded once: a small delta in half precision would be lost step by step.
            embeddings = (embeddings.float() + delta[:, start:]).to(embeddings.dtype)
        hidden = self.decoder(
            inputs_embeds=embeddings,
            attention_mask=batch.valid.long(),
            past_key_values=self._cache(prefix, len(batch.ids)) if prefix else None,
            use_cache=prefix is not None,
        ).last_hidden_state
        rows, at = batch.response.nonzero(as_tuple=True)
        logits = self.head(hidden[rows, at - 1 - start])
        return ResponseLogits(logits, batch.ids[rows, at], rows)

    def _cache(self, prefix: Prefix, rows: int) -> DynamicCache:
        pairs = [(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in prefix]
        return DynamicCache(pairs, config=self.base.config)

    @torch.no_grad()
    def _check_head(self) -> None:
        """Some families scale or cap their logits after the head: left out, training would be silently wrong."""
        ids = torch.arange(4, device=self.device)[None]
        whole = self.base(input_ids=ids, use_cache=False).logits.float()
        ours = self.head(self.decoder(input_ids=ids, use_cache=False).last_hidden_state).float()
        tolerance = HEAD_TOLERANCE.get(self.embedding.weight.dtype, 5e-2)
        if not torch.allclose(whole, ours, rtol=tolerance, atol=tolerance):
            raise DatError(
                f"{type(self.base).__name__} changes its logits after the output head (a cap or a scale), "
                "which training does not support: choose another target.model"
            )
