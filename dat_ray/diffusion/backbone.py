"""A causal language model run without its causal mask, on rows padded to a rectangle or packed end to end.

Any `*ForCausalLM` of transformers whose layers call its attention interface will do.

Shapes: B rows, T canvas positions, N tokens of all rows, M selected (row, position) pairs, D width, V vocabulary,
H heads, C width of a head.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from dat_ray.errors import DatError

PACKED_ATTENTION = "dat_packed"


def base_model(model: nn.Module) -> PreTrainedModel:
    """The model under a PEFT wrapper, whose layers already hold the adapter; the model itself without one."""
    get_base_model = getattr(model, "get_base_model", None)
    return cast(PreTrainedModel, model if get_base_model is None else get_base_model())


def output_head(model: nn.Module) -> nn.Module:
    """The linear map from hidden states (M, D) to logits (M, V)."""
    return base_model(model).get_output_embeddings()


def bidirectional_mask(valid: Tensor) -> Tensor:
    """Attention mask in which every query sees every valid token, before and after it.

    Args:
        valid: (B, T) bool, False at padding.

    Returns:
        (B, 1, T, T) bool. Transformers takes a 4-D boolean mask as it is and adds no causal one.
    """
    B, T = valid.shape
    return valid[:, None, None, :].expand(B, 1, T, T)


def hidden_states(model: nn.Module, ids: Tensor, valid: Tensor) -> Tensor:
    """Final hidden states with bidirectional attention.

    Args:
        model: a `*ForCausalLM` of transformers, with or without a PEFT adapter.
        ids: (B, T) int64 canvases, padded on the right only, so that positions are 0, 1, ... for every row.
        valid: (B, T) bool, False at padding, which nobody attends to.

    Returns:
        (B, T, D), after the final norm. Under the next-token shift the state at i-1 predicts the token at i.

    Raises:
        DatError: the model's attention is another function than the one that is computed.
    """
    _check_attention(model)
    decoder = base_model(model).base_model  # without its head
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    output = decoder(input_ids=ids, attention_mask=bidirectional_mask(valid), position_ids=positions, use_cache=False)
    return output.last_hidden_state


def pad_rows(rows: list[list[int]], fill: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Pads token lists on the right: ids (B, T) int64 and valid (B, T) bool."""
    length = max(map(len, rows))
    ids = torch.tensor([row + [fill] * (length - len(row)) for row in rows], dtype=torch.int64, device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(length, device=device)[None] < lengths[:, None]


@dataclass(frozen=True)
class Packing:
    """How rows lie in a packed batch, one after the other.

    Attributes:
        longest: tokens of the longest row.
        groups: runs of neighbors of one length: first token, rows, tokens of each.
        positions: (1, N) int64, of each token in its row.
        bounds: (B + 1,) int32, where rows begin and the last one ends.
    """

    longest: int
    groups: tuple[tuple[int, int, int], ...]
    positions: Tensor
    bounds: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Packing:
        """The packing of rows of these lengths."""
        groups, start = [], 0
        for length, run in itertools.groupby(lengths):
            count = len(list(run))
            groups.append((start, count, length))
            start += count * length
        bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        positions = torch.cat([torch.arange(length) for length in lengths])
        return cls(max(lengths), tuple(groups), positions[None].to(device), bounds.to(device))


def _check_attention(model: nn.Module) -> None:
    """A mask of booleans and packed rows are `sdpa`'s, which leaves a bound on attention logits out (Gemma 2)."""
    config = base_model(model).config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise DatError(
            f"{type(base_model(model)).__name__} bounds its attention logits, which a sampler leaves out: choose another"
        )


def pack_attention(model: nn.Module) -> None:
    """Lets a model run on packed rows too (`packed_states`); elsewhere it attends as under transformers' `sdpa`.

    Raises:
        DatError: the model's attention is another function.
    """
    _check_attention(model)
    base_model(model).set_attn_implementation(PACKED_ATTENTION)


def compile_layers(model: nn.Module) -> None:
    """Compiles each decoder layer, at its first call and again where a shape turns out to vary.

    Worth it on a GPU: it joins the small operations between matrix products, which take a quarter of the time there
     (LLaDA-8B's shape on an H200: 60% of peak compiled, 49% as it is; benchmarks/).
    """
    for layer in base_model(model).base_model.layers:
        layer.compile()


def packed_states(model: nn.Module, ids: Tensor, packing: Packing) -> Tensor:
    """Final hidden states of packed rows, each attending to itself in both directions.

    Every layer but attention works on the N tokens alone. Attention, a few percent of the work at these lengths, runs
    on a GPU in 16 bits as FlashAttention over the packed rows, elsewhere once for each run of rows of one length: of the
    exact ways the fastest measured on a CPU, so rows are best sorted by length.

    Args:
        model: a `*ForCausalLM` of transformers after `pack_attention`.
        ids: (N,) int64.
        packing: of the rows.

    Returns:
        (N, D), after the final norm.
    """
    decoder = base_model(model).base_model
    # A mask of four dimensions is taken as it is: no causal one is made, and none is guessed from the positions.
    anything = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)
    output = decoder(
        input_ids=ids[None], attention_mask=anything, position_ids=packing.positions, use_cache=False, packing=packing
    )
    return output.last_hidden_state[0]


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: (1, H, N, C) query, key and value of packed rows to (1, N, H, C)."""
    if packing is None:
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return attended
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (N, H, C); key and value may have fewer heads
    grouped = q.shape[1] != k.shape[1]
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
        from torch.nn.attention.varlen import varlen_attn

        bounds, T = packing.bounds, packing.longest
        options: dict[str, Any] = {"enable_gqa": True} if grouped else {}
        mixed = varlen_attn(q, k, v, bounds, bounds, T, T, scale=scaling, **options)
        return cast(Tensor, mixed)[None], None
    mixed = torch.empty_like(q)
    for start, rows, length in packing.groups:
        part = slice(start, start + rows * length)
        q_, k_, v_ = (x[part].unflatten(0, (rows, length)).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q_, k_, v_, scale=scaling, enable_gqa=grouped)
        mixed[part].unflatten(0, (rows, length)).copy_(out.transpose(1, 2))
    return mixed[None], None


AttentionInterface.register(PACKED_ATTENTION, _packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
