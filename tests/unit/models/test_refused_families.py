"""What is no sampler is refused with a reason, and with advice that can be followed."""

from __future__ import annotations

import pytest

from dat_ray.errors import InputError
from dat_ray.models.adaptable import check_adaptable
from dat_ray.models.families import recognize
from tests.unit.models import published
from tests.unit.models.published import TINY


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"model_type": "llada2_moe", "architectures": ["LLaDA2MoeModelLM"]}, "inclusionAI/LLaDA2.0-mini"),
        ({"model_type": "sdar", "architectures": ["SDARForCausalLM"]}, "JetLM/SDAR-4B-Chat"),
        ({"model_type": "a2d-qwen3", "architectures": ["A2DQwen3LMHeadModel"]}, "dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1"),
        (published.DREAM_7B | {"block_size": 32}, "Dream-org/DreamReasoner-8B"),
    ],
)
def test_block_diffusion_is_refused_with_the_reason(config, name):
    with pytest.raises(InputError, match=r"block after block.*cannot see the response that follows") as failure:
        recognize(config, name)
    assert "\n" not in str(failure.value)


def test_uniform_noise_is_refused_with_the_reason():
    config = {"model_type": "diffusion_gemma", "architectures": ["DiffusionGemmaForBlockDiffusion"]}
    with pytest.raises(InputError, match="has no mask token"):
        recognize(config, "google/diffusiongemma-4b")


@pytest.mark.parametrize(
    ("config", "name", "reason"),
    [
        ({"model_type": "diffuqwen35", "architectures": ["DiffuQwen35"]}, "UT-IFML/dQwen3.5-9B-Base", "left to right alone"),
        (published.LLADA_MOE_7B, "GSAI-ML/LLaDA-MoE-v2-30B-A3B-Instruct", "experts that all tokens share"),
    ],
)
def test_what_no_stock_layout_computes_is_refused_with_the_reason(config, name, reason):
    with pytest.raises(InputError, match=f"has .*{reason}.*: use LLaDA, ") as failure:
        recognize(config, name)
    assert "\n" not in str(failure.value)


def test_a_folder_may_be_called_as_its_owner_likes(tmp_path):
    assert recognize(TINY["llada"], str(tmp_path / "llada2-sdar")).name == "LLaDA"


@pytest.mark.parametrize(
    ("config", "adaptable"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, True),
        ({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}, True),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, False),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, False),
        ({"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}, False),
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, False),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, False),
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "is_causal": False}, False),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}, False),
        ({"architectures": ["SomethingDiffusion"]}, False),
        ({}, False),
    ],
)
def test_only_what_dat_adapt_takes_is_pointed_to_it(config, adaptable):
    with pytest.raises(InputError, match="is no masked diffusion model that is known here") as failure:
        recognize(config, "somebody/model")
    advised = "`dat adapt` makes one of a causal chat model such as this" in str(failure.value)
    assert advised == adaptable
    try:
        check_adaptable(config, "somebody/model")
    except InputError:
        assert not advised
    else:
        assert advised


def test_a_quantized_causal_model_is_not_pointed_to_dat_adapt_either():
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "awq"}}
    with pytest.raises(InputError, match="is quantized"):
        recognize(config, "somebody/model-awq")
