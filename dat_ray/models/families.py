"""The published masked diffusion families, and what each is in terms of layouts that transformers ships.

None needs a repository's own code: taken apart, each is a stock decoder without its causal mask.

    LLaDA 8B (Base, Instruct, 1.5), iLLaDA   Llama
    LLaDA-MoE                                Qwen3-MoE: a norm on each head's queries and keys, top-k not renormalized
    Dream, DiffuCoder, DreamOn               Qwen2, the state at i-1 predicts token i
    CoDA, dQwen3                             Qwen3, the same shift; dQwen3 puts a token of its own before every text
    RND1                                     Qwen3-MoE, the same shift
    A2D Llama, Qwen2, Qwen3 (MDLM)           the layout they were adapted from

Sources: method of each from its public configuration, model card and modeling code (GSAI-ML/LLaDA-8B-*, GSAI-ML/iLLaDA-8B-*,
inclusionAI/LLaDA-MoE-7B-A1B-*, Dream-org/Dream-v0-* and DreamOn-v0-7B, Salesforce/CoDA-v0-*, UT-IFML/dQwen3-1.7B-Base,
radicalnumerics/RND1-Base-0910, dllm-hub). A family that writes block by block is refused: the blocks to the left of a
response were never trained to see it, so there is no p(prompt | response) to sample from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from dat_ray.errors import InputError
from dat_ray.models.adaptable import not_adaptable
from dat_ray.models.layouts import ARCHITECTURES
from dat_ray.models.weight_files import refuse_quantized

Config = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """A checkpoint in its published format, understood.

    Attributes:
        name: of the family, for messages.
        config: config.json of the layout that it is converted to, without the sampler's own entries.
        shift: 1 when the state at i-1 predicts token i.
        mask_token_id: of the configuration; None where it does not say.
        usual_mask_token_id: the published constant, for where the tokenizer does not know either.
        layout: canvas layout that it should be sampled with: ``answer`` for base models, ``chat`` for instruct ones.
        mask_token: text of the mask where the family took one that its tokenizer has for something else.
        start_token: text of the token that its own code puts before every text; None where it puts none.
        banned: ids that no prompt may hold besides special tokens: they stand for another length of the canvas.
    """

    name: str
    config: Config
    shift: Literal[0, 1]
    mask_token_id: int | None
    usual_mask_token_id: int | None
    layout: Literal["chat", "answer"]
    mask_token: str | None = None
    start_token: str | None = None
    banned: tuple[int, ...] = ()


_INSTEAD = "use LLaDA, iLLaDA, LLaDA-MoE 7B, Dream, CoDA, dQwen3, RND1 or a model of `dat adapt`"
_BLOCK_REASON = "writes block after block, left to right, so a prompt cannot see the response that follows it"

# What cannot be used: by a part of the model type or the architecture, why.
_REFUSED: tuple[tuple[tuple[str, ...], str], ...] = (
    (("diffusion_gemma", "diffusiongemma"),
     "replaces tokens by random ones and has no mask token, so that a prompt cannot be left open"),
    (("llada2", "sdar", "bd3lm", "blockdiffusion", "fast_dllm_v2", "dreamreasoner"), _BLOCK_REASON),
    (("diffuqwen35",), "has layers that read left to right alone (Gated DeltaNet), which no stock layout computes"),
    (("llada_moe_v2",), "has experts that all tokens share, which no stock layout computes"),
)  # fmt: skip
# Of these the configuration tells nothing, so the name counts too. A folder may be called as its owner likes: no others.
_BY_NAME = ("bd3lm", "llada_moe_v2")


def recognize(config: Mapping[str, Any], name: str, field: str = "sampler.model") -> Family:
    """Which family a config.json belongs to.

    Args:
        config: as published.
        name: hub id or folder, which tells base and instruct models apart; nothing else in a checkpoint does.
        field: recipe field to name in an error.

    Raises:
        InputError: a block-diffusion or uniform-noise family, a variant whose arithmetic no layout here has, quantized
            weights, or no masked diffusion model at all. `dat adapt` of the model is advised only where it takes it.
    """
    kinds = [str(config.get("model_type", "")), *map(str, config.get("architectures") or [])]
    told = " ".join(kinds).lower().replace("-", "_")
    called = Path(name).name.lower().replace("-", "_")
    for signs, reason in _REFUSED:
        if any(word in told or (word in _BY_NAME and word in called) for word in signs):
            raise InputError(field, name, f"{reason}: {_INSTEAD}")
    if config.get("block_size"):
        raise InputError(field, name, f"{_BLOCK_REASON}: {_INSTEAD}")
    for sign, build in _BUILDERS:
        if sign in told:
            refuse_quantized(name, config, field)
            family = build(dict(config), name, field)
            family.config["architectures"] = [ARCHITECTURES[family.config["model_type"]]]
            return family
    shown = ", ".join(dict.fromkeys(kind for kind in kinds if kind)) or "no model type"
    remedy = _INSTEAD
    if not_adaptable(config) is None:
        refuse_quantized(name, config, field)
        remedy = "`dat adapt` makes one of a causal chat model such as this"
    raise InputError(field, name, f"is no masked diffusion model that is known here ({shown}): {remedy}")


# What a configuration of any family may say and still be computed by a stock decoder: option -> values without effect. Others
# would be dropped in the conversion, and the sampler would be another model.
_EVERYWHERE_PLAIN: dict[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (1, 1.0, None),
    "rotary_pct": (1, 1.0, None),
    "rope_scaling": (None, False),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logit_scale": (1, 1.0, None),
    "logits_scaling": (1, 1.0, None),
    "attention_multiplier": (None,),
    "embedding_multiplier": (1, 1.0, None),
    "residual_multiplier": (1, 1.0, None),
    "use_parallel_residual": (False, None),
}

# The same of LLaDA's, which are to be a Llama.
_LLADA_PLAIN: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "block_group_size": (1,),
    "layer_norm_type": ("rms",),
    "attention_layer_norm": (False,),
    "bias_for_layer_norm": (False, None),
    "include_bias": (False,),
    "include_qkv_bias": (False, None),
    "activation_type": ("silu", "swiglu"),
    "hidden_act": ("silu",),
    "rope": (True,),
    "alibi": (False,),
    "scale_logits": (False,),
    "input_emb_norm": (False,),
    "clip_qkv": (None,),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
}


def _llada(config: Config, name: str, field: str) -> Family:
    """LLaDA 8B and iLLaDA. The first has OLMo's option names, the second Llama's; both are read."""
    _refuse_unless(config, _LLADA_PLAIN, name, field)
    improved = "illada" in name.lower() or "hidden_size" in config
    width = _first(config, name, field, "hidden_size", "d_model")
    heads = _first(config, name, field, "num_attention_heads", "n_heads")
    inner = config.get("intermediate_size") or config.get("mlp_hidden_size") or width * config.get("mlp_ratio", 4)
    stock = {
        "model_type": "llama",
        "vocab_size": _first(config, name, field, "embedding_size", "vocab_size"),
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": _first(config, name, field, "num_hidden_layers", "n_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads") or config.get("n_kv_heads") or heads,
        "max_position_embeddings": _first(config, name, field, "max_position_embeddings", "max_sequence_length"),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", config.get("weight_tying", False))),
        "attention_bias": False,
        "mlp_bias": False,
        **_shared(config, name, field),
    }
    if improved:
        return Family("iLLaDA", stock, 0, config.get("mask_token_id"), 5, _layout(name))
    return Family("LLaDA", stock, 0, config.get("mask_token_id"), 126336, _layout(name))


_MOE_PLAIN: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "clip_qkv": (None,),
    "shared_expert_intermediate_size": (None, 0),
    "n_shared_experts": (None, 0),
    "num_shared_experts": (None, 0),
    "qk_layernorm": (True,),
    "score_function": ("softmax", None),
    "score_func": ("softmax", None),
    "routed_scaling_factor": (1, 1.0, None),
    "moe_router_enable_expert_bias": (False, None),
    "num_expert_group": (1, None),
}


def _llada_moe(config: Config, name: str, field: str) -> Family:
    """LLaDA-MoE: the published code normalizes queries and keys head by head and leaves the chosen gates as they are."""
    _refuse_unless(config, _MOE_PLAIN, name, field)
    if "qk_layernorm" not in config:
        raise InputError(field, name, "its config.json does not say `qk_layernorm`: use the published LLaDA-MoE checkpoint")
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    width, inner = config["hidden_size"], config["expert_intermediate_size"]
    sparse = config.get("moe_layer_freq") or [1] * layers
    stock = {
        "model_type": "qwen3_moe",
        "vocab_size": config["vocab_size"],
        "hidden_size": width,
        "head_dim": width // heads,
        "intermediate_size": config.get("dense_intermediate_size") or inner,
        "moe_intermediate_size": inner,
        "num_experts": config["num_experts"],
        "num_experts_per_tok": config["num_experts_per_tok"],
        # Whatever config.json says: the published code has no such option and never divides by the chosen gates' sum.
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i in range(layers) if not sparse[i]],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "max_position_embeddings": config["max_position_embeddings"],
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "attention_bias": False,
        **_shared(config, name, field),
    }
    return Family("LLaDA-MoE", stock, 0, config.get("mask_token_id"), 156895, _layout(name))


@dataclass(frozen=True)
class _Shifted:
    """A family whose options and tensors bear its layout's own names, and whose state at i-1 predicts token i.

    Attributes:
        name: of the family.
        model_type: of its layout.
        mask_token_id: the published constant.
        plain: options that must have no effect.
        copied: options that are the layout's, besides those of every decoder.
        fixed: options of the layout that the published code does not ask its configuration for.
        mask_token, start_token: see `Family`.
    """

    name: str
    model_type: str
    mask_token_id: int
    plain: Mapping[str, tuple[Any, ...]]
    copied: tuple[str, ...] = ()
    fixed: Config = field(default_factory=dict)
    mask_token: str | None = None
    start_token: str | None = None


_DECODER = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings",
)  # fmt: skip
_QWEN_PLAIN: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "use_sliding_window": (False, None),
    "use_mrope": (False, None),
    "attention_bias": (False, None),
}
# The Dream code takes a bias for q, k and v alone, as Qwen2 does without asking.
_DREAM = _Shifted("Dream", "qwen2", 151666, _QWEN_PLAIN | {"attention_bias": (True, None)})
# Its head is never tied to the embedding, and its config.json does not say so.
_CODA = _Shifted("CoDA", "qwen3", 151669, _QWEN_PLAIN, ("head_dim",), {"tie_word_embeddings": False})
# Both tokens are constants of its code, taken from those of Qwen3 that no text has.
_DQWEN3 = _Shifted(
    "dQwen3", "qwen3", 151660, _QWEN_PLAIN, ("head_dim",), mask_token="<|fim_middle|>", start_token="<|vision_start|>"
)
_RND1 = _Shifted(
    "RND1", "qwen3_moe", 151669, _QWEN_PLAIN,
    ("head_dim", "moe_intermediate_size", "num_experts", "num_experts_per_tok", "norm_topk_prob"),
    {"tie_word_embeddings": False, "decoder_sparse_step": 1, "mlp_only_layers": [], "attention_bias": False},
)  # fmt: skip


def _shifted(kind: _Shifted, config: Config, name: str, field: str) -> Family:
    _refuse_unless(config, kind.plain, name, field)
    stock = {
        "model_type": kind.model_type,
        **{option: _first(config, name, field, option) for option in (*_DECODER, *kind.copied)},
        "use_sliding_window": False,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        **_shared(config, name, field),
        **kind.fixed,
    }
    # DreamOn's code doubles a mask where this token is written. Here the length is the recipe's; the token that takes a
    # mask away is the end of text, which no prompt may hold in any family.
    expand = config.get("expand_token_id")
    return Family(
        kind.name, stock, 1, config.get("mask_token_id"), kind.mask_token_id, _layout(name), kind.mask_token, kind.start_token,
        () if expand is None else (expand,),
    )  # fmt: skip


def _adapted(config: Config, name: str, field: str) -> Family:
    """A causal model that the public A2D recipe turned into a masked diffusion model, which drops the shift."""
    base = config["model_type"].lower().replace("_", "-").removeprefix("a2d-")
    if base not in ("llama", "qwen2", "qwen3"):
        raise InputError(field, name, f"is adapted from {base}, of which only llama, qwen2 and qwen3 are known here")
    stock = {key: value for key, value in config.items() if key != "auto_map"} | {"model_type": base}
    return Family(f"A2D {base}", stock, 0, config.get("mask_token_id"), None, "answer" if "base" in name.lower() else "chat")


# The first sign that is in the model type or architecture wins: LLaDA-MoE calls itself `llada` as well.
_BUILDERS: tuple[tuple[str, Callable[[Config, str, str], Family]], ...] = (
    ("a2d", _adapted),
    ("lladamoe", _llada_moe),
    ("llada_moe", _llada_moe),
    ("llada", _llada),
    ("dream", partial(_shifted, _DREAM)),
    ("codalanguagemodel", partial(_shifted, _CODA)),
    ("diffuqwen3", partial(_shifted, _DQWEN3)),
    ("rnd1", partial(_shifted, _RND1)),
)


def _shared(config: Config, name: str, field: str) -> Config:
    """Entries that every layout has."""
    rope = config.get("rope_parameters") or {}
    entries: Config = {
        "hidden_act": "silu",
        "rms_norm_eps": _first(config, name, field, "rms_norm_eps"),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(_first(config | rope, name, field, "rope_theta"))},
        "attention_dropout": 0.0,
        "use_cache": False,
        "dtype": config.get("dtype") or config.get("torch_dtype") or "bfloat16",
    }
    return entries | {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}


def _layout(name: str) -> Literal["chat", "answer"]:
    instruct = any(word in name.lower() for word in ("instruct", "llada-1.5", "-chat"))
    return "chat" if instruct else "answer"


def _first(config: Config, name: str, field: str, *keys: str) -> Any:
    for key in keys:
        if config.get(key) is not None:
            return config[key]
    raise InputError(field, name, f"its config.json has no `{keys[0]}`: use the published checkpoint")


def _refuse_unless(config: Config, plain: Mapping[str, tuple[Any, ...]], name: str, field: str) -> None:
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise InputError(field, name, f"its config.json has rope_type = {rope['rope_type']!r}: only the default can be converted")
    if set(config.get("layer_types") or ()) - {"full_attention"}:
        kinds = ", ".join(sorted(set(map(str, config["layer_types"]))))
        raise InputError(field, name, f"its config.json has layer_types = {kinds}: only full_attention can be converted")
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        window = config["sliding_window"]
        raise InputError(field, name, f"its config.json has sliding_window = {window!r}: only attention to all can be converted")
    for option, allowed in (_EVERYWHERE_PLAIN | dict(plain)).items():
        if option in config and config[option] not in allowed:
            raise InputError(
                field, name, f"its config.json has {option} = {config[option]!r}, which no stock layout computes: "
                f"only {' or '.join(map(repr, allowed))} can be converted"
            )  # fmt: skip
