"""The names under which families publish their tensors, and those of the layouts that they are converted to.

Only LLaDA 8B has names of its own, those of OLMo; every other family already uses its layout's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def layout_name(tensor: str) -> str:
    """The name of a published tensor in the layout it is converted to.

    LLaDA's own names are translated (its rotary embedding is half-split like Llama's: no rows are permuted); every other
    family already uses the layout's names.
    """
    match = _LLADA_TENSOR.fullmatch(tensor)
    if match is None:
        return tensor
    if match["top"]:
        return f"{_LLADA_TOP[match['top']]}.weight"
    return f"model.layers.{match['layer']}.{_LLADA_LAYER[match['part']]}.weight"


def published_name(tensor: str, settings: Mapping[str, Any]) -> str:
    """The name under which a family publishes a tensor of its layout; the inverse of `layout_name`.

    Args:
        tensor: name in the layout.
        settings: content of the published config.json.
    """
    if "d_model" not in settings:  # only LLaDA 8B has names of its own, those of OLMo, as its options are
        return tensor
    name = tensor.removesuffix(".weight")
    for own, stock in _LLADA_TOP.items():
        if name == stock:
            return f"model.transformer.{own}.weight"
    layer, _, part = name.removeprefix("model.layers.").partition(".")
    own = next(own for own, stock in _LLADA_LAYER.items() if stock == part)
    return f"model.transformer.blocks.{layer}.{own}.weight"


_LLADA_TOP = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
_LLADA_LAYER = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
}
_LLADA_TENSOR = re.compile(
    rf"model\.transformer\.(?:(?P<top>{'|'.join(_LLADA_TOP)})|"
    rf"blocks\.(?P<layer>\d+)\.(?P<part>{'|'.join(_LLADA_LAYER)}))\.weight"
)
