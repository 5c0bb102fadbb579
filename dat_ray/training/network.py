"""A causal language model as training uses it: perturbed prompts in, logits of response tokens out.

Two exact savings. The output head runs on response positions only, so that no tensor of vocabulary width
exists on prompt positions. And the tokens before the user message, which are the same in every row, go through
the model once a batch instead of once a row: the rows read their keys and values (gradients flow into them). Only the
first is to be had with compiled layers, under activation checkpointing, and in the backward pass of weights split over workers.

Shapes: L perturbed layers, B rows, T positions, P shared leading tokens, D width, N selected response tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from dat_ray.diffusion.backbone import base_model, output_head
from dat_ray.errors import DatError
from dat_ray.models.architectures import attention_cap, not_trainable, refuse_missing_layers
from dat_ray.training.batches import Batch
from dat_ray.training.objectives import full_precision

# Keys and values (1, heads, P, width of a head) of every layer.
Prefix = list[tuple[Tensor, Tensor]]

# What can be perturbed: the embeddings, or the output of a decoder layer by its number.
Layer = str | int
EMBEDDING: tuple[Layer, ...] = ("embedding",)

# float32 differs by 1e-5 between two ways to the same logits; bfloat16 keeps 8 bits of them.
HEAD_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}

# Forms of a decoder layer that may be compiled: attacked, trained, with the adapter off; each for one row and for several, and
# for every kind of layer that a family alternates. Past the limit, of PyTorch's own accord 8, further forms run uncompiled.
MAX_FORMS = 32


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


def add_in_full_precision(values: Tensor, shift: Tensor) -> Tensor:
    """The sum is rounded once: a small shift in half precision would be lost step by step."""
    return (full_precision(values) + shift).to(values.dtype)


class Network:
    """The parts of a `*ForCausalLM`, with its adapter.

    Args:
        model: a PEFT model on a causal language model of transformers.
        checkpointing: keep each layer's input only and compute its activations again in the backward pass.
        compile_backend: of `torch.compile`, which then compiles each decoder layer; the first calls are slow.

    Raises:
        DatError: the model does more to its logits than one linear head, or to its attention than is computed.
    """

    def __init__(self, model: nn.Module, *, checkpointing: bool = False, compile_backend: str | None = None) -> None:
        self.model = model
        self.base = base_model(model)
        self.decoder = getattr(self.base, self.base.base_model_prefix)
        self.head = output_head(model)
        self.embedding = self.base.get_input_embeddings()
        self._check_configuration()
        layers = DynamicCache(config=self.base.config).layers
        # Every layer sees all tokens before a position, and takes a mask of booleans.
        self._plain = bool(layers) and all(type(layer) is DynamicLayer for layer in layers) and self._attention() != "eager"
        # A checkpointed layer runs without a cache, so there is nothing to read the shared tokens from. A compiled one with a
        # cache is bound to its own number in it: each layer would be another form, and most would be past the limit.
        self._can_share = self._plain and not checkpointing and compile_backend is None
        self.split_over_workers = False
        self._perturbed: list[Any] = []
        self._checkpointed: list[nn.Module] = []
        with self.frozen():
            self._check_head()
        if checkpointing:
            self.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self._checkpointed = [module for module in self.base.modules() if isinstance(module, GradientCheckpointingLayer)]
        if compile_backend is not None:
            for layer in self.layers:
                layer.compile(backend=compile_backend, dynamic=True, recompile_limit=MAX_FORMS)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """In which hidden states and their gradients flow; the adapter's own are float32."""
        return self.embedding.weight.dtype

    @property
    def vocabulary(self) -> int:
        """V, rows of the head that no token uses included."""
        return int(self.head.out_features)

    @property
    def replayable(self) -> bool:
        """Whether a pass can be recorded as a CUDA graph: plain layers on a GPU, neither compiled, checkpointed nor split."""
        return self.device.type == "cuda" and self._can_share and not self.split_over_workers

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters by name, in a fixed order."""
        return dict(sorted((name, p) for name, p in self.model.named_parameters() if p.requires_grad))

    def parameter_counts(self) -> tuple[int, int]:
        """Parameters of the decoder without its embeddings, and of the head; for counting operations."""
        decoder = sum(parameter.numel() for parameter in self.decoder.parameters()) - self.embedding.weight.numel()
        return decoder, sum(parameter.numel() for parameter in self.head.parameters())

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No dropout, and no parameter collects a gradient: the state in which the model is attacked."""
        training, trainable = self.model.training, self.trainable()
        self.model.eval()
        # A layer checkpoints while it says that it trains; dropout is in its children, which do not.
        for layer in self._checkpointed:
            layer.training = True
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
        if self.split_over_workers and torch.is_grad_enabled():
            # A split layer is gathered for its backward pass when a gradient reaches its output; this one's would come
            # through its keys and values alone.
            return None
        self._remove_hooks()
        cache = DynamicCache(config=self.base.config)
        self.decoder(input_ids=batch.ids[:1, : batch.shared], past_key_values=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def response_logits(
        self, batch: Batch, delta: Tensor | None = None, prefix: Prefix | None = None, layers: Sequence[Layer] = EMBEDDING
    ) -> ResponseLogits:
        """Runs the batch and predicts its response tokens.

        Args:
            batch: B rows.
            delta: (L, B, T, D) float32, added to what `layers` name; zero on the shared tokens.
            prefix: of `self.prefix(batch)` under the same weights, where it was computed already.
            layers: where each of the L perturbations acts.
        """
        self._remove_hooks()
        prefix = prefix or self.prefix(batch)
        start = batch.shared if prefix else 0
        embeddings = self.embedding(batch.ids[:, start:])
        if delta is not None:
            for layer, shift in zip(layers, delta[:, :, start:], strict=True):
                if layer == "embedding":
                    embeddings = add_in_full_precision(embeddings, shift)
                else:
                    self._add_hook(layer, shift)
        hidden = self.decoder(
            inputs_embeds=embeddings,
            attention_mask=self._attention_mask(batch, start),
            past_key_values=self._cache(prefix, len(batch.ids)) if prefix else None,
            use_cache=prefix is not None,
        ).last_hidden_state
        if not self._checkpointed:
            self._remove_hooks()
        rows, at = batch.response_index
        logits = self.head(hidden[rows, at - 1 - start])
        return ResponseLogits(logits, batch.ids[rows, at], rows)

    def _attention_mask(self, batch: Batch, start: int) -> Tensor:
        """(B, T) for transformers to make a causal mask of; on a GPU that mask, (B, 1, T - start, T) bool: transformers would
        ask the device whether anything is padding, and wait."""
        if self.device.type != "cuda" or not self._plain:
            return batch.valid.long()
        at = torch.arange(batch.ids.shape[1], device=self.device)
        return (at[None, :] <= at[start:, None])[None, None] & batch.valid[:, None, None, :]

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers, in order: the only list among its parts, which not every family calls `layers` (GPT-2: `h`)."""
        (layers,) = (part for part in self.decoder.children() if isinstance(part, nn.ModuleList))
        return layers

    def _add_hook(self, layer: Layer, shift: Tensor) -> None:
        """Adds `shift` (B, T, D) to what a decoder layer puts out.

        With checkpointing the hook stays until the next call: the layer runs a second time in the backward pass.
        """
        layers = self.layers
        refuse_missing_layers([layer], len(layers))
        assert isinstance(layer, int), "the embeddings are no layer"

        def add(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (add_in_full_precision(output[0], shift), *output[1:])
            return add_in_full_precision(output, shift)

        self._perturbed.append(layers[layer].register_forward_hook(add))

    def _remove_hooks(self) -> None:
        while self._perturbed:
            self._perturbed.pop().remove()

    def _cache(self, prefix: Prefix, rows: int) -> DynamicCache:
        pairs = [(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in prefix]
        return DynamicCache(pairs, config=self.base.config)

    def _attention(self) -> str | None:
        attention: str | None = self.base.config._attn_implementation
        return attention

    def _check_configuration(self) -> None:
        config, name = self.base.config, type(self.base).__name__
        reason = not_trainable(config)
        if reason is not None:
            raise DatError(f"{name} {reason}: choose another target.model")
        if attention_cap(config) is not None and self._attention() != "eager":
            raise DatError(
                f"{name} bounds its attention logits, which {self._attention()} leaves out: load it with eager attention"
            )

    @torch.no_grad()
    def _check_head(self) -> None:
        """The last net, for a family whose fields are not known: it cannot see a cap that these few small logits don't reach."""
        ids = torch.arange(4, device=self.device)[None]
        whole = self.base(input_ids=ids, use_cache=False).logits.float()
        ours = self.head(self.decoder(input_ids=ids, use_cache=False).last_hidden_state).float()
        tolerance = HEAD_TOLERANCE.get(self.dtype, 5e-2)
        if not torch.allclose(whole, ours, rtol=tolerance, atol=tolerance):
            raise DatError(
                f"{type(self.base).__name__} changes its logits after the output head (a cap or a scale), "
                "which training does not support: choose another target.model"
            )
