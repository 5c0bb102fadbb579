"""Turns a Llama GGUF file into an ordinary model folder: bfloat16 safetensors, config and tokenizer.

The file is read once and every block is unpacked with the `gguf` package, without building a model: a few
seconds for 135M parameters. Only the Llama architecture with a byte-level BPE vocabulary is understood.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, TokenType, dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dat_ray.errors import DatError

_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(source: Path, folder: Path) -> None:
    """Writes the model of the GGUF file `source` into `folder`.

    Raises:
        DatError: another architecture, tokenizer or tensor than this module understands.
    """
    reader = GGUFReader(source)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    if meta["general.architecture"] != "llama":
        raise DatError(f"{source.name}: architecture {meta['general.architecture']!r} is not llama")
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    config = _config(meta, tied=tied)
    weights = {}
    for tensor in reader.tensors:
        name = _weight_name(tensor.name)
        array = dequantize(tensor.data, tensor.tensor_type)
        if name.endswith("q_proj.weight"):
            array = _rotary_halves(array, config["num_attention_heads"])
        elif name.endswith("k_proj.weight"):
            array = _rotary_halves(array, config["num_key_value_heads"])
        # An unquantized tensor is a view of the read-only file: torch wants a copy.
        weights[name] = torch.from_numpy(np.array(array, order="C")).to(torch.bfloat16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config.json", config), ("generation_config.json", _special_ids(meta))):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _tokenizer(meta).save_pretrained(folder)


def _weight_name(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if stem.startswith("blk."):
        _, layer, part = stem.split(".", 2)
        if part in _BLOCK_TENSORS:
            return f"model.layers.{layer}.{_BLOCK_TENSORS[part]}.{suffix}"
    elif stem in _TENSORS:
        return f"{_TENSORS[stem]}.{suffix}"
    raise DatError(f"GGUF tensor {name!r} has no place in a Llama model")


def _rotary_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the output rows of a query or key projection, (heads * d, width).

    GGUF keeps the two coordinates that rotary embedding turns together side by side; transformers keeps them
    d/2 apart.
    """
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _config(meta: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    """The entries of config.json.

    Only what the file says, so that they are the same under every version of transformers.
    """
    heads = meta["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta["llama.embedding_length"] // heads,
        "hidden_act": "silu",
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": meta["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
        "tie_word_embeddings": tied,
        **_special_ids(meta),
    }


def _special_ids(meta: Mapping[str, Any]) -> dict[str, int]:
    return {
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
    }


def _tokenizer(meta: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer in the file's metadata, with its chat template."""
    kind, rule = meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"]
    if (kind, rule) != ("gpt2", "smollm"):
        raise DatError(f"GGUF tokenizer {kind!r} with pre-tokenizer {rule!r} is not understood")
    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    # "smollm" cuts digits one by one before the GPT-2 rule; without that, spaces before a number merge otherwise.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = zip(tokens, meta["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, kind in control if kind == TokenType.CONTROL]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[meta["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[meta["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[meta["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[meta["tokenizer.ggml.unknown_token_id"]],
        model_max_length=meta["llama.context_length"],
        clean_up_tokenization_spaces=False,
        chat_template=meta["tokenizer.chat_template"],
    )
