"""A checkpoint that reads images too, in its published form, as a text model: tiny random weights, both backends."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from dat_ray.config.models import TargetConfig
from dat_ray.engines.checks import check_engine
from dat_ray.engines.factory import build_target
from tests.unit.models.tiny import make_tokenizer


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As google/gemma-3-12b-it, tiny: a text part and a part that sees, and no processor's files."""
    folder, tokenizer = tmp_path_factory.mktemp("gemma3"), make_tokenizer()
    text = {"vocab_size": len(tokenizer) + 4, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "sliding_window": 64,
            "max_position_embeddings": 256, "pad_token_id": 2, "eos_token_id": 2, "bos_token_id": 1}  # fmt: skip
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    first = len(tokenizer)
    images = {"image_token_index": first, "boi_token_index": first + 1, "eoi_token_index": first + 2, "mm_tokens_per_image": 4}
    config = Gemma3Config(text_config=text, vision_config=vision, **images)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Gemma3ForConditionalGeneration(config).float()
        for parameter in model.parameters():
            parameter.data = torch.randn_like(parameter) * 0.15
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def config_of(folder: str, backend: str) -> TargetConfig:
    settings = {
        "model": folder,
        "backend": backend,
        "dtype": "float32",
        "max_model_len": 128,
        "batch_size": 4,
        "kv_cache_gib": 0.1,
    }
    return TargetConfig.model_validate(settings)


def test_its_text_part_answers_and_scores_in_torch(gemma: str) -> None:
    assert "Gemma3ForConditionalGeneration" in check_engine("evaluation.attacker", config_of(gemma, "torch")).detail
    target = build_target(config_of(gemma, "torch"), threads=1)
    assert len(target.complete(["How are you?", "Sure"], 6)) == 2
    assert all(value < 0 for value in target.logprob(["How are you?"], ["Sure, here"]))


@pytest.mark.slow
def test_vllm_serves_its_text_part_as_torch_does(gemma: str) -> None:
    pytest.importorskip("torchvision", reason="vLLM's own class of Gemma 3 imports it")
    prompts, responses = ["How are you?", "Sure, here is"], ["Sure, here", "the fox"]
    expected = build_target(config_of(gemma, "torch"), threads=1).logprob(prompts, responses)
    served = build_target(config_of(gemma, "vllm"), threads=1)
    assert served.logprob(prompts, responses) == pytest.approx(expected, abs=2e-3)
    assert all(one.error is None for one in served.complete(prompts, 6))
