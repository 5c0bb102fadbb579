"""Tiny checkpoints in the formats that masked diffusion families are published in, and plain code that computes them.

Names, shapes and options follow the public configurations (model cards and config.json of GSAI-ML/LLaDA-8B-Base, -Instruct,
LLaDA-1.5, iLLaDA-8B-Base, inclusionAI/LLaDA-MoE-7B-A1B-Base, Dream-org/Dream-v0-Base-7B and DreamOn-v0-7B,
Salesforce/CoDA-v0-*, UT-IFML/dQwen3-1.7B-Base, radicalnumerics/RND1-Base-0910, dllm-hub's A2D models); the
arithmetic follows each architecture's description and shares no code with transformers or with the package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken

from tests.unit.models.tiny import make_tokenizer

MASKS = {"llada": "<|mdm_mask|>", "illada": "<[MASK]>", "dqwen3": "<|fim_middle|>"}
# Other tokens that a family's tokenizer has and its code asks for.
OWN_TOKENS = {"dqwen3": AddedToken("<|vision_start|>", special=True), "dreamon": AddedToken("<|expand|>", special=False)}
# The families whose state at i-1 predicts token i.
SHIFTED = ("dream", "dreamon", "coda", "dqwen3", "rnd1")

# The options that decide what is computed, as published.
LLADA_8B = {
    "model_type": "llada", "architectures": ["LLaDAModelLM"], "d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32,
    "mlp_hidden_size": 12288, "mlp_ratio": 4, "vocab_size": 126464, "embedding_size": 126464, "mask_token_id": 126336,
    "eos_token_id": 126081, "pad_token_id": 126081, "max_sequence_length": 4096, "rope": True, "rope_theta": 500000.0,
    "rope_full_precision": True, "rms_norm_eps": 1e-5, "layer_norm_type": "rms", "layer_norm_with_affine": True,
    "attention_layer_norm": False, "bias_for_layer_norm": False, "include_bias": False, "include_qkv_bias": False,
    "activation_type": "silu", "block_type": "llama", "block_group_size": 1, "alibi": False, "scale_logits": False,
    "input_emb_norm": False, "weight_tying": False, "multi_query_attention": None, "use_cache": False,
    "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM", "AutoConfig": "configuration_llada.LLaDAConfig"},
}  # fmt: skip
ILLADA_8B = {
    "model_type": "llada", "architectures": ["LLaDAModelLM"], "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 155136,
    "max_position_embeddings": 8192, "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    "hidden_act": "silu", "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"},
}  # fmt: skip
LLADA_MOE_7B = {
    # Its model type is LLaDA's; only the architecture tells them apart.
    "model_type": "llada", "architectures": ["LLaDAMoEModelLM"], "hidden_size": 2048, "num_hidden_layers": 16,
    "num_attention_heads": 16, "num_key_value_heads": 16, "dense_intermediate_size": 8192, "expert_intermediate_size": 1024,
    "shared_expert_intermediate_size": None, "num_experts": 64, "num_experts_per_tok": 8, "moe_layer_freq": [1] * 16,
    "norm_topk_prob": None, "qk_layernorm": True, "vocab_size": 157184, "max_position_embeddings": 8192,
    "rope_theta": 50000, "rope_scaling": None, "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": False,
    "clip_qkv": None, "tie_word_embeddings": False, "pad_token_id": 156892, "eos_token_id": 156892,
    "auto_map": {"AutoModel": "modeling_lladamoe.LLaDAMoEModelLM"},
}  # fmt: skip
DREAM_7B = {
    "model_type": "Dream", "architectures": ["DreamModel"], "hidden_size": 3584, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064,
    "mask_token_id": 151666, "bos_token_id": 151643, "eos_token_id": 151643, "pad_token_id": 151643,
    "max_position_embeddings": 131072, "rope_theta": 1000000.0, "rope_scaling": None, "rms_norm_eps": 1e-6,
    "hidden_act": "silu", "tie_word_embeddings": False, "use_sliding_window": False, "use_mrope": False,
    "auto_map": {"AutoModel": "modeling_dream.DreamModel", "AutoConfig": "configuration_dream.DreamConfig"},
}  # fmt: skip
DREAMON_7B = DREAM_7B | {"expand_token_id": 151667}
CODA_1B = {
    "model_type": "CoDA", "architectures": ["CoDALanguageModel"], "hidden_size": 2048, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 6144, "vocab_size": 151936,
    "max_position_embeddings": 40960, "rope_theta": 1000000, "rope_scaling": None, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "attention_bias": False, "attention_dropout": 0.0, "use_sliding_window": False, "sliding_window": None,
    "max_window_layers": 28, "attention_kernel": "flash_attention", "mask_token_id": 151669, "bos_token_id": 151643,
    "eos_token_id": 151645, "pad_token_id": 151643, "mask_block_sizes": [4, 8, 16, 32],
    "auto_map": {"AutoConfig": "model_config.CoDAConfig", "AutoModel": "modeling_coda.CoDALanguageModel"},
}  # fmt: skip
DQWEN3_1B = {
    "model_type": "diffuqwen3", "architectures": ["DiffuQwen3"], "hidden_size": 2048, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 6144, "vocab_size": 151936,
    "max_position_embeddings": 32768, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000}, "rms_norm_eps": 1e-6,
    "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0, "use_sliding_window": False, "sliding_window": None,
    "max_window_layers": 28, "layer_types": ["full_attention"] * 28, "tie_word_embeddings": True,
    "auto_map": {"AutoConfig": "modeling_dqwen3.DiffuQwen3Config", "AutoModel": "modeling_dqwen3.DiffuQwen3"},
}  # fmt: skip
RND1_30B = {
    "model_type": "rnd1", "architectures": ["RND1"], "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128,
    "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "vocab_size": 151936,
    "max_position_embeddings": 40960, "rope_theta": 1000000.0, "rope_scaling": False, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "attention_bias": False, "attention_dropout": 0.0, "use_sliding_window": False, "sliding_window": False,
    "max_window_layers": 48, "tie_word_embeddings": False, "is_causal": False, "moe_backend": "hf", "num_diffusion_steps": 256,
    "mask_token_id": 151669, "eos_token_id": 151645, "pad_token_id": 151643,
    "auto_map": {"AutoConfig": "configuration_rnd.RND1Config", "AutoModelForMaskedLM": "modeling_rnd.RND1LM"},
}  # fmt: skip
A2D_QWEN3 = {
    "model_type": "a2d-qwen3", "architectures": ["A2DQwen3LMHeadModel"], "hidden_size": 1024, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936,
    "max_position_embeddings": 40960, "rope_theta": 1000000, "rope_scaling": None, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "attention_bias": False, "tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": None,
}  # fmt: skip

# Heads of 32 are the smallest that vLLM's CPU attention takes.
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 352}
TINY: dict[str, dict[str, Any]] = {
    "llada": LLADA_8B | {"d_model": 64, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 96,
                         "vocab_size": 352, "embedding_size": 352, "max_sequence_length": 256},
    "illada": ILLADA_8B | SMALL | {"num_key_value_heads": 1, "intermediate_size": 96, "max_position_embeddings": 256},
    "llada_moe": LLADA_MOE_7B | SMALL | {"num_key_value_heads": 2, "dense_intermediate_size": 96, "moe_layer_freq": [0, 1],
                                         "expert_intermediate_size": 32, "num_experts": 6, "num_experts_per_tok": 2,
                                         "max_position_embeddings": 256},
    "dream": DREAM_7B | SMALL | {"num_key_value_heads": 1, "intermediate_size": 96, "max_position_embeddings": 256},
    "dreamon": DREAMON_7B | SMALL | {"num_key_value_heads": 1, "intermediate_size": 96, "max_position_embeddings": 256},
    "coda": CODA_1B | SMALL | {"num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 96,
                               "max_position_embeddings": 256},
    # Heads that are together wider than the model is, as RND1's.
    "dqwen3": DQWEN3_1B | SMALL | {"num_key_value_heads": 1, "head_dim": 64, "intermediate_size": 96,
                                   "max_position_embeddings": 256, "layer_types": ["full_attention"] * 2},
    "rnd1": RND1_30B | SMALL | {"num_key_value_heads": 1, "head_dim": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
                                "num_experts": 6, "num_experts_per_tok": 2, "max_position_embeddings": 256},
    "a2d_qwen3": A2D_QWEN3 | SMALL | {"num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 96,
                                      "max_position_embeddings": 256},
    "a2d_qwen2": DREAM_7B | SMALL | {"model_type": "a2d-qwen2", "architectures": ["A2DQwen2LMHeadModel"],
                                     "num_key_value_heads": 1, "intermediate_size": 96, "max_position_embeddings": 256},
    "a2d_llama": SMALL | {"model_type": "a2d-llama", "architectures": ["A2DLlamaLMHeadModel"], "num_key_value_heads": 1,
                          "intermediate_size": 96, "max_position_embeddings": 256, "rope_theta": 10000.0,
                          "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "hidden_act": "silu"},
}  # fmt: skip
for _name in TINY:
    # Ids of the real vocabularies, which the tiny ones do not have.
    TINY[_name] = {key: value for key, value in TINY[_name].items() if not key.endswith("token_id")}
# The tiny tokenizers end with the mask, at 338, and the tokens of `OWN_TOKENS`.
TINY["dreamon"]["expand_token_id"] = 339


def published_shapes(family: str, config: dict) -> dict[str, tuple[int, ...]]:
    """Tensors of a checkpoint under its published names."""
    shapes: dict[str, tuple[int, ...]] = {}
    if family == "llada":
        d, v, inner = config["d_model"], config["embedding_size"], config["mlp_hidden_size"]
        kv = d // config["n_heads"] * config["n_kv_heads"]
        shapes |= {"wte.weight": (v, d), "ln_f.weight": (d,), "ff_out.weight": (v, d)}
        for i in range(config["n_layers"]):
            block = {"q_proj": (d, d), "k_proj": (kv, d), "v_proj": (kv, d), "attn_out": (d, d), "ff_proj": (inner, d),
                     "up_proj": (inner, d), "ff_out": (d, inner), "attn_norm": (d,), "ff_norm": (d,)}  # fmt: skip
            shapes |= {f"blocks.{i}.{name}.weight": shape for name, shape in block.items()}
        return {f"model.transformer.{name}": shape for name, shape in shapes.items()}
    d, v = config["hidden_size"], config["vocab_size"]
    head = config.get("head_dim", d // config["num_attention_heads"])
    q, kv = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    shapes |= {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (v, d)
    for i in range(config["num_hidden_layers"]):
        block = {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,), "self_attn.q_proj.weight": (q, d),
                 "self_attn.k_proj.weight": (kv, d), "self_attn.v_proj.weight": (kv, d),
                 "self_attn.o_proj.weight": (d, q)}  # fmt: skip
        if family in ("dream", "dreamon", "a2d_qwen2"):
            block |= {"self_attn.q_proj.bias": (q,), "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.bias": (kv,)}
        if family in ("llada_moe", "a2d_qwen3", "coda", "dqwen3", "rnd1"):
            block |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
        units = [("mlp.", config.get("intermediate_size", config.get("dense_intermediate_size")))]
        if family == "rnd1" or (family == "llada_moe" and config["moe_layer_freq"][i]):
            block["mlp.gate.weight"] = (config["num_experts"], d)
            inner = config.get("moe_intermediate_size") or config["expert_intermediate_size"]
            units = [(f"mlp.experts.{j}.", inner) for j in range(config["num_experts"])]
        for unit, inner in units:
            block |= {f"{unit}gate_proj.weight": (inner, d), f"{unit}up_proj.weight": (inner, d),
                      f"{unit}down_proj.weight": (d, inner)}  # fmt: skip
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in block.items()}
    return shapes


def random_tensors(family: str, config: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights far larger than a usual start, so that a wrong one is seen in the logits."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in sorted(published_shapes(family, config).items()):
        noise = torch.randn(shape, generator=generator) * 0.2
        tensors[name] = noise + 1 if len(shape) == 1 and not name.endswith("bias") else noise
    return tensors


def write_checkpoint(folder: Path, family: str, config: dict | None = None, shards: int = 3, seed: int = 0) -> dict:
    """Writes a checkpoint as it is published: sharded safetensors with an index, config.json, a tokenizer.

    Returns:
        Its tensors.
    """
    config = config or TINY[family]
    folder.mkdir(parents=True)
    tensors = random_tensors(family, config, seed)
    names = sorted(tensors)
    placed: dict[str, str] = {}
    for k in range(shards):
        file = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        part = names[k::shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_llada.py").write_text("raise RuntimeError('the code of a repository must never run')\n")
    write_tokenizer(folder, MASKS.get(family, "<|mask|>"), family)
    return tensors


def write_tokenizer(folder: Path, mask: str, family: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(mask, special=True)]})
    if family in OWN_TOKENS:
        tokenizer.add_tokens([OWN_TOKENS[family]])
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    if family in ("dream", "dreamon"):
        # Dream publishes vocabulary and merges with a tokenizer class of its own, and no tokenizer.json.
        whole = json.loads((folder / "tokenizer.json").read_text())
        bpe = whole["model"]
        (folder / "vocab.json").write_text(json.dumps(bpe["vocab"]))
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in bpe["merges"]]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
        (folder / "tokenizer.json").unlink()
        added = {str(token.pop("id")): token for token in whole["added_tokens"]}
        settings |= {"added_tokens_decoder": added, "tokenizer_class": "DreamTokenizer", "mask_token": mask,
                     "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}}  # fmt: skip
    path.write_text(json.dumps(settings))


def plain_logits(family: str, config: dict, tensors: dict[str, torch.Tensor], ids: list[int]) -> torch.Tensor:
    """(T, V) float64 logits of one canvas: every position attends to every other.

    Those of the model without its own code's shift by one, and without the token that dQwen3's puts before the canvas.
    """
    w = {name: tensor.double() for name, tensor in tensors.items()}
    layers = config.get("n_layers") or config["num_hidden_layers"]
    heads = config.get("n_heads") or config["num_attention_heads"]
    kv_heads = config.get("n_kv_heads") or config["num_key_value_heads"]
    eps, theta = config["rms_norm_eps"], config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    if family == "llada":
        x = w["model.transformer.wte.weight"][ids]
        for i in range(layers):
            p = {name.split(".")[-2]: w[name] for name in w if name.startswith(f"model.transformer.blocks.{i}.")}
            q, k, v = (rms(x, p["attn_norm"], eps) @ p[name].T for name in ("q_proj", "k_proj", "v_proj"))
            x = x + attention(q, k, v, heads, kv_heads, theta) @ p["attn_out"].T
            h = rms(x, p["ff_norm"], eps)
            x = x + (silu(h @ p["ff_proj"].T) * (h @ p["up_proj"].T)) @ p["ff_out"].T
        return rms(x, w["model.transformer.ln_f.weight"], eps) @ w["model.transformer.ff_out.weight"].T
    x = w["model.embed_tokens.weight"][ids]
    for i in range(layers):
        p = {name.removeprefix(f"model.layers.{i}."): w[name] for name in w if name.startswith(f"model.layers.{i}.")}
        h = rms(x, p["input_layernorm.weight"], eps)
        parts = []
        for name in ("q", "k", "v"):
            parts.append(h @ p[f"self_attn.{name}_proj.weight"].T + p.get(f"self_attn.{name}_proj.bias", 0.0))
        q, k, v = parts
        norms = p.get("self_attn.q_norm.weight"), p.get("self_attn.k_norm.weight")
        x = x + attention(q, k, v, heads, kv_heads, theta, norms, eps) @ p["self_attn.o_proj.weight"].T
        h = rms(x, p["post_attention_layernorm.weight"], eps)
        x = x + (experts(h, p, config, family == "rnd1") if "mlp.gate.weight" in p else swiglu(h, p, "mlp."))
    return rms(x, w["model.norm.weight"], eps) @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T


def published_prediction(
    family: str, config: dict, tensors: dict[str, torch.Tensor], ids: list[int], place: int, start: int | None = None
) -> torch.Tensor:
    """(V,) logits of the token at `place`, as the family's own code reads them off.

    LLaDA's and A2D's takes the state there. The others' move all logits one to the right (Dream's and CoDA's repeat the first,
    RND1's leaves it out); dQwen3's instead puts `start` before the text and drops the last state.
    """
    if family == "dqwen3":
        assert start is not None
        return plain_logits(family, config, tensors, [start, *ids])[:-1][place]
    logits = plain_logits(family, config, tensors, ids)
    if family in SHIFTED:
        logits = torch.cat([logits[:1], logits[:-1]])
    return logits[place]


def rms(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def silu(x):
    return x / (1 + (-x).exp())


def swiglu(x, p, unit):
    gate, up, down = (p[f"{unit}{name}_proj.weight"] for name in ("gate", "up", "down"))
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def experts(x, p, config, shares):
    """Each token goes through its k likeliest experts, weighted by their probabilities, or by their shares of those."""
    probabilities = (x @ p["mlp.gate.weight"].T).softmax(-1)
    out = torch.zeros_like(x)
    for t in range(len(x)):
        best = sorted(range(config["num_experts"]), key=lambda j: -probabilities[t, j])[: config["num_experts_per_tok"]]
        total = sum(probabilities[t, j] for j in best) if shares else 1
        for j in best:
            out[t] += probabilities[t, j] / total * swiglu(x[t], p, f"mlp.experts.{j}.")
    return out


def attention(q, k, v, heads, kv_heads, theta, norms=(None, None), eps=0.0):
    T, d = len(q), q.shape[1] // heads
    out = []
    for head in range(heads):
        mine, shared = slice(head * d, head * d + d), slice(head * kv_heads // heads * d, (head * kv_heads // heads + 1) * d)
        a, b = q[:, mine], k[:, shared]
        if norms[0] is not None:
            a, b = rms(a, norms[0], eps), rms(b, norms[1], eps)
        weights = (rotate(a, theta) @ rotate(b, theta).T / d**0.5).softmax(-1)
        out.append(weights @ v[:, shared])
    assert out[0].shape == (T, d)
    return torch.cat(out, dim=1)


def rotate(x, theta):
    """Rotary embedding of (T, d): coordinate j turns together with j + d/2, by t * theta ** (-2j / d)."""
    T, d = x.shape
    angle = torch.arange(T).double()[:, None] * theta ** (-2 * torch.arange(d // 2).double() / d)
    first, second = x[:, : d // 2], x[:, d // 2 :]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=1)
