"""The layouts that a target may have, in miniature: random weights, the family's kind of tokenizer, its chat format.

Every layout is a folder like one from a hub: config.json, generation_config.json, safetensors, tokenizer files, template.
Widths are those that vLLM's CPU attention takes (heads of 32), windows and frequencies such that a sequence of a test
reaches past them: what a layout has beyond Llama shows in the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, normalizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from dat_ray.config.models import TargetConfig
from tests.unit.layouts import templates
from tests.unit.layouts.tokenizer_files import WORDS_WITH_BREAKS, TokenizerFiles, byte_level, metaspace, sentencepiece

WIDTH, HEAD, WINDOW = 64, 32, 12
COMMON: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
QWEN3_MOE: dict[str, Any] = {"head_dim": HEAD, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
MIXTRAL: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
NO_THOUGHTS = {"enable_thinking": False}
EXPERTS = "training.lora.targets = 'all-linear': adapts model.layers.0.mlp.*name linear layers"


@dataclass(frozen=True)
class Layout:
    """One kind of target.

    Attributes:
        model_type: of transformers' configuration.
        tokenizer: its files.
        template: Jinja source of the chat format.
        config: what the configuration has beyond `COMMON`.
        options: of the template, as a recipe for this model must give them.
        targets: of the adapter.
        refused: a pattern of the line that refuses it when a run starts; None where it is served.
    """

    model_type: str
    tokenizer: Callable[[], TokenizerFiles]
    template: str
    config: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    targets: str | tuple[str, ...] = "all-linear"
    refused: str | None = None


def _llama3() -> TokenizerFiles:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return byte_level(special, WORDS_WITH_BREAKS, bos=special[0], bos_token=special[0], eos_token=special[4])


def _qwen(*plain: str) -> TokenizerFiles:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    names = {"tokenizer_class": "Qwen2Tokenizer", "pad_token": special[0], "eos_token": special[2]}
    return byte_level(special, WORDS_WITH_BREAKS, plain=plain, normalizer=normalizers.NFC(), **names)


def _qwen3() -> TokenizerFiles:
    return _qwen("<think>", "</think>")


def _mistral() -> TokenizerFiles:
    return metaspace(tokenizer_class="LlamaTokenizer", legacy=True)


def _gemma() -> TokenizerFiles:
    special = ["<pad>", "<start_of_turn>", "<end_of_turn>"]
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return metaspace(special, plain=("\n", "\n\n", "▁▁", "<table>"), prepend=False, tokenizer_class="GemmaTokenizer", **names)


def _phi3() -> TokenizerFiles:
    names = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    special = [AddedToken(name, special=True, normalized=False, rstrip=True) for name in names]
    named: dict[str, Any] = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return metaspace(special, tokenizer_class="LlamaTokenizer", legacy=False, **named)


def _olmo2() -> TokenizerFiles:
    names: dict[str, Any] = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return byte_level(["<|endoftext|>"], WORDS_WITH_BREAKS, tokenizer_class="GPT2Tokenizer", **names)


def _gpt(*special: str, tokenizer_class: str) -> Callable[[], TokenizerFiles]:
    def make() -> TokenizerFiles:
        names: dict[str, Any] = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
        return byte_level(["<|endoftext|>", *special], tokenizer_class=tokenizer_class, **names)

    return make


LAYOUTS: dict[str, Layout] = {
    "llama": Layout("llama", lambda: metaspace(tokenizer_class="LlamaTokenizer", legacy=False), templates.LLAMA_2),
    "llama3-rope": Layout(
        "llama",
        _llama3,
        templates.LLAMA_3,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            "tie_word_embeddings": True,
        },
    ),
    "mistral-window": Layout("mistral", _mistral, templates.MISTRAL, {"sliding_window": WINDOW}),
    "qwen2": Layout("qwen2", _qwen, templates.CHATML, {"tie_word_embeddings": True}),
    "qwen3": Layout("qwen3", _qwen3, templates.QWEN_3, {"head_dim": HEAD}, NO_THOUGHTS),
    "qwen3-moe": Layout("qwen3_moe", _qwen3, templates.QWEN_3, QWEN3_MOE, NO_THOUGHTS, ATTENTION),
    "mixtral": Layout("mixtral", _mistral, templates.MISTRAL, MIXTRAL, targets=ATTENTION),
    "gemma": Layout("gemma", _gemma, templates.GEMMA, {"head_dim": HEAD, "tie_word_embeddings": True}),
    "gemma2": Layout(
        "gemma2",
        _gemma,
        templates.GEMMA,
        {
            "head_dim": HEAD,
            "query_pre_attn_scalar": 24,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 6.0,
            "tie_word_embeddings": True,
        },
        refused="final_logit_softcapping",
    ),
    "gemma3": Layout(
        "gemma3_text",
        _gemma,
        templates.GEMMA,
        {
            "head_dim": HEAD,
            "query_pre_attn_scalar": 24,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
            "tie_word_embeddings": True,
        },
    ),
    "phi3": Layout("phi3", _phi3, templates.PHI_3, {"sliding_window": 200, "pad_token_id": 0}),
    "olmo2": Layout("olmo2", _olmo2, templates.CHATML.replace("<|im_start|>", "").replace("<|im_end|>", "<|endoftext|>")),
    "neox": Layout(
        "gpt_neox",
        _gpt("<|prompter|>", "<|assistant|>", tokenizer_class="GPTNeoXTokenizer"),
        templates.NEOX,
        {"num_key_value_heads": 2},
    ),
    "gpt2": Layout(
        "gpt2",
        _gpt(tokenizer_class="GPT2Tokenizer"),
        templates.GPT_2,
        {
            "n_embd": WIDTH,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 256,
            "n_inner": 96,
            # Or an update would be random: GPT-2 is published with dropout in its configuration.
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
        },
    ),
    # The bases of published defenses, which come with SentencePiece; Llama-2 and Mistral are above.
    "zephyr": Layout("mistral", _mistral, templates.ZEPHYR, {"sliding_window": WINDOW}),
    "vicuna": Layout("llama", sentencepiece, templates.VICUNA),
    # Its own format closes a message by a line break, which its tokenizer joins to the sign before.
    "olmo2-instruct": Layout("olmo2", _olmo2, templates.OLMO_2, refused="cannot be cut at the user message"),
    "qwen3-moe-experts": Layout("qwen3_moe", _qwen3, templates.QWEN_3, QWEN3_MOE, NO_THOUGHTS, refused=EXPERTS),
    "mixtral-experts": Layout("mixtral", _mistral, templates.MISTRAL, MIXTRAL, refused=EXPERTS),
    "qwen3-thinking": Layout("qwen3", _qwen3, templates.QWEN_3, {"head_dim": HEAD}, refused="enable_thinking: false"),
}
SERVED = tuple(name for name, layout in LAYOUTS.items() if layout.refused is None)


def target_of(name: str, folder: str) -> TargetConfig:
    """The section `target` of a recipe for this layout."""
    options = dict(LAYOUTS[name].options)
    return TargetConfig(model=folder, backend="torch", dtype="float32", max_model_len=200, batch_size=4, template_options=options)


def build(name: str, folder: Path) -> str:
    """Writes the folder of a layout, in float32; the same weights every time."""
    layout = LAYOUTS[name]
    layout.tokenizer().save(folder, layout.template)
    options = {**({} if layout.model_type == "gpt2" else COMMON), **layout.config}
    # The configuration says which class loads the tokenizer.
    AutoConfig.for_model(layout.model_type, **options).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    # A vocabulary is filled up to a multiple: there are rows of the embedding that no text has.
    rows = -(-len(tokenizer) // 32) * 32
    config = AutoConfig.for_model(layout.model_type, **{**options, **tokens}, vocab_size=rows, dtype="float32")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():
                # Far from the usual start, where every layout gives nearly the same.
                weight.add_(torch.randn_like(weight) * (0.1 if weight.ndim == 1 else 0.15))
    model.generation_config = GenerationConfig(bos_token_id=tokens["bos_token_id"], eos_token_id=tokens["eos_token_id"])
    model.save_pretrained(folder)
    return str(folder)
