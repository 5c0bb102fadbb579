"""A causal language model run without its causal mask.

Shapes: B rows, T canvas positions, M selected (row, position) pairs, D width, V vocabulary.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


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
    """
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
