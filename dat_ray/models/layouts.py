"""Names and shapes of the tensors that a configuration promises, for the layouts that transformers and vLLM both know.

A conversion is checked against these before a model is built from it: what is missing, left over or of another shape is
said by name, and not found out from nonsense that a half-initialized model writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TensorShape = tuple[int, ...]

# Model type of a layout -> its class in transformers and in vLLM.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


def layout_tensors(config: Mapping[str, Any]) -> dict[str, TensorShape]:
    """Every tensor of a model as transformers stores it: name -> shape.

    Args:
        config: content of a config.json whose `model_type` is one of `ARCHITECTURES`, every size written out.

    Returns:
        The output head is left out where it is tied to the embedding.
    """
    assert config["model_type"] in ARCHITECTURES, config["model_type"]
    width, heads, kv_heads = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or width // heads
    vocabulary = config["vocab_size"]
    tensors: dict[str, TensorShape] = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    if not config.get("tie_word_embeddings", False):
        tensors["lm_head.weight"] = (vocabulary, width)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        tensors |= {f"{layer}{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for name, rows in (("q_proj", heads * head), ("k_proj", kv_heads * head), ("v_proj", kv_heads * head)):
            tensors[f"{layer}self_attn.{name}.weight"] = (rows, width)
            if config["model_type"] == "qwen2":
                tensors[f"{layer}self_attn.{name}.bias"] = (rows,)
        tensors[f"{layer}self_attn.o_proj.weight"] = (width, heads * head)
        if config["model_type"].startswith("qwen3"):
            tensors |= {f"{layer}self_attn.{norm}.weight": (head,) for norm in ("q_norm", "k_norm")}
        tensors |= {f"{layer}mlp.{name}": shape for name, shape in _feed_forward(config, i).items()}
    return tensors


def _feed_forward(config: Mapping[str, Any], layer: int) -> dict[str, TensorShape]:
    width = config["hidden_size"]
    if config["model_type"] != "qwen3_moe" or layer in config["mlp_only_layers"]:
        return _swiglu("", width, config["intermediate_size"])
    tensors: dict[str, TensorShape] = {"gate.weight": (config["num_experts"], width)}
    for j in range(config["num_experts"]):
        tensors |= _swiglu(f"experts.{j}.", width, config["moe_intermediate_size"])
    return tensors


def _swiglu(prefix: str, width: int, inner: int) -> dict[str, TensorShape]:
    return {
        f"{prefix}gate_proj.weight": (inner, width),
        f"{prefix}up_proj.weight": (inner, width),
        f"{prefix}down_proj.weight": (width, inner),
    }
