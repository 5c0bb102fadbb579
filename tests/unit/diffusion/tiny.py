"""A tiny causal model and a character tokenizer, both built in memory."""

from __future__ import annotations

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<end>", "<user>", "<assistant>", "<mask>"]
LETTERS = "\n abcdefghijklmnopqrstuvwxyzA:.,?"
MASK = 3
VOCABULARY = 48  # more rows than tokens, as in released checkpoints


def character_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *LETTERS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    return fast


def gapped_tokenizer() -> PreTrainedTokenizerFast:
    """Letters with ids from 10 on, and none at 4 to 9 and 13: fewer tokens than its last id says."""
    ids = [*range(4), 10, 11, 12, *range(14, 64)]
    vocabulary = dict(zip([*SPECIAL, *LETTERS], ids, strict=False))
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    return fast


def tiny_model(seed: int = 0, scale: float = 0.3, tied: bool = True) -> LlamaForCausalLM:
    """Two layers of width 32; weights large enough that logits differ clearly between tokens."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=scale,
        tie_word_embeddings=tied,
        max_position_embeddings=128,
    )
    return LlamaForCausalLM(config).eval()
