"""A tiny chat model of each layout, a table of pairs, and a recipe for both."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dat_ray.config.adapt import AdaptRecipe
from tests.unit.models.tiny import make_tokenizer

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16, "max_position_embeddings": 256, "tie_word_embeddings": True, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
}  # fmt: skip
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "helpful", "assistant", "today"]


def tiny_chat_model(folder: Path, layout: str, **options: object) -> str:
    """A random causal model with more vocabulary rows than tokens, as Qwen has."""
    tokenizer = make_tokenizer()
    config = AutoConfig.for_model(layout, **SIZES | {"vocab_size": len(tokenizer) + 3} | options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def pairs_table(path: Path, rows: int = 60) -> str:
    """Requests and answers that share their words, as a CSV with columns of other names."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["instruction", "output"])
        for i in range(rows):
            topic = f"{WORDS[i % 11]} {WORDS[(i // 3) % 11]} {i % 7}"
            writer.writerow([f"How are {topic}", f"Sure, here is {topic}"])
    return str(path)


def adapt_recipe(**training: object) -> AdaptRecipe:
    return AdaptRecipe.model_validate(
        {
            "name": "tiny",
            "heldout_share": 0.3,
            "pairs": {"prompt": "instruction", "response": "output"},
            "threads": 1,
            "training": {"steps": 6, "batch_size": 4, "pool_batches": 2, "rank": 4, "alpha": 8, "checkpoint_every": 2,
                         "evaluate_every": 3, **training},
        }
    )  # fmt: skip
