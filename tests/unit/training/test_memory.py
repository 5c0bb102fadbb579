"""The memory arithmetic: parameter counts against a real model, and the paper's sizes on one GPU."""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM

from dat_ray.config.training import LoraConfig
from dat_ray.models.adapters import attach_lora
from dat_ray.training.memory import LLAMA3_8B, QWEN25_14B, LlamaShape, update_bytes


def test_parameter_counts_are_those_of_a_model() -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
    )
    model = LlamaForCausalLM(config)
    shape = LlamaShape(layers=3, width=32, hidden=48, keys=16, vocabulary=50)
    norms = sum(parameter.numel() for name, parameter in model.named_parameters() if "norm" in name)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters()) - norms
    adapted = attach_lora(model, LoraConfig(rank=5), 0)
    assert shape.lora_parameters(5) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_the_papers_models_fit_one_80_gb_gpu() -> None:
    assert abs(LLAMA3_8B.parameters / 8.03e9 - 1) < 0.01
    assert abs(QWEN25_14B.parameters / 14.77e9 - 1) < 0.01
    # 4 harmful rows with both responses, then 4 retain rows, of 128 tokens: DAT's batch of 8.
    dat = update_bytes(LLAMA3_8B, rank=64, rows=8, tokens=128, response=64)
    assert 25e9 < dat["total"] < 40e9
    # CAT's batch of 16 on the larger model.
    cat = update_bytes(QWEN25_14B, rank=64, rows=16, tokens=128, response=64)
    assert cat["total"] < 80e9
    # Original CAT: 256 tokens, micro batches of 8 rows.
    assert update_bytes(LLAMA3_8B, rank=64, rows=16, tokens=256, response=128)["total"] < 80e9
    light = update_bytes(LLAMA3_8B, rank=64, rows=16, tokens=256, response=128, checkpointing=True)
    assert light["activations"] < 0.1 * update_bytes(LLAMA3_8B, rank=64, rows=16, tokens=256, response=128)["activations"]
