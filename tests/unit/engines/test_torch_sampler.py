from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from dat_ray.config.models import SamplerConfig
from dat_ray.diffusion.canvas import SamplerSpec
from dat_ray.engines import torch_sampler
from dat_ray.engines.sampler_setup import SamplerSetup
from dat_ray.engines.torch_sampler import TorchSampler
from dat_ray.errors import InputError
from dat_ray.models.fp8 import quantize_layers
from tests.unit.models.tiny import make_model, make_tokenizer, save_folder


def test_compiled_layers_are_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"sampler\.compile = True: PyTorch sees no GPU here"):
        TorchSampler(SamplerConfig(model="any", backend="torch", compile=True), "nowhere", threads=1)


def test_8_bit_layers_are_for_a_gpu_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SamplerConfig(model="any", backend="torch", quantization="fp8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"sampler\.quantization = 'fp8': PyTorch sees no GPU here: leave it out"):
        TorchSampler(config, "nowhere", threads=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(InputError, match=r"sees a GPU without 8-bit products, NVIDIA A100, here: leave it out"):
        TorchSampler(config, "nowhere", threads=1)


def test_8_bits_of_few_layers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The experts of a mixture are one weight and no linear layers: most of such a model would stay as it is, without a word."""
    tokenizer = make_tokenizer()
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=8,
        num_experts_per_tok=2,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "experts")
    tokenizer.save_pretrained(tmp_path / "experts")
    SamplerSpec(0, 0, (), "answer").write(tmp_path / "experts")
    sampler = SamplerConfig(model=str(tmp_path / "experts"), backend="torch", quantization="fp8", dtype="float32")
    # A CPU stands for the GPU: what is refused is found before anything is computed.
    monkeypatch.setattr(torch_sampler, "quantize_layers", lambda layers, device: quantize_layers(layers, torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(InputError, match=r"has \d+% of this model's layers in 8 bits, .* no experts: set backend to vllm"):
        TorchSampler(sampler, sampler.model, threads=1)


def test_a_prefix_with_control_tokens_is_refused_since_it_is_read_as_text(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    folder = save_folder(make_model(len(tokenizer)), tokenizer, tmp_path / "sampler")
    SamplerSpec(0, 0, (), "answer").write(folder)
    assert json.loads((tmp_path / "sampler" / "config.json").read_text())["is_causal"] is False
    config = {"model": folder, "layout": "answer", "prompt_tokens": [4], "steps": 4}
    assert SamplerSetup.read(SamplerConfig.model_validate(config), folder).spec.answer_prefix == "\nAnswer: "
    with pytest.raises(InputError, match=r"^sampler\.answer_prefix = .*is read as plain text"):
        SamplerSetup.read(SamplerConfig.model_validate(config | {"answer_prefix": "<|im_end|>\nAnswer: "}), folder)
