"""The rates of a plan: operations against hand counts, seconds against records that no rate was made from."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import (
    Gemma2Config,
    LlamaConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dat_ray.config.loading import load_recipe
from dat_ray.config.models import SamplerConfig
from dat_ray.config.training import AttackConfig, LoraConfig, RetainConfig, TrainingConfig
from dat_ray.devices import GPUS, find_device, processor
from dat_ray.errors import InputError
from dat_ray.models.adapters import attach_lora
from dat_ray.models.chat import Encoded
from dat_ray.planning.engine_work import infill_work
from dat_ray.planning.estimate import plan_run
from dat_ray.planning.shapes import KNOWN, model_shape, shape_of_config
from dat_ray.planning.speed import Answers, Host, Infill, answer_seconds, forward_flops, infill_seconds
from dat_ray.planning.stage_work import update_seconds
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.cost import update_passes
from dat_ray.training.memory import LLAMA3_8B
from dat_ray.training.passes import UpdateTokens, count_passes

WITHIN = 1.5
H200 = Host(GPUS["h200"])


def within(planned: float, measured: float) -> bool:
    return 1 / WITHIN <= planned / measured <= WITHIN


def test_a_token_of_llama_3_8b_by_hand() -> None:
    # Per layer: q and o 4096 x 4096, k and v 4096 x 1024, gate, up and down 4096 x 14336; two operations a weight.
    layer = 2 * 16_777_216 + 2 * 4_194_304 + 3 * 58_720_256
    assert forward_flops(LLAMA3_8B, 1, 0) == 2 * 32 * layer == 13_958_643_712
    # With its logits: 2 x 4096 x 128256 more. Behind 100 tokens each layer multiplies 4096 values with 100 keys and 100 values.
    assert forward_flops(LLAMA3_8B, 1, 1, 100) == 13_958_643_712 + 1_050_673_152 + 32 * 2 * 2 * 100 * 4096


def test_a_prompt_of_llada_takes_what_method_says() -> None:
    # 64 passes of 2.73 TFLOP: 174.9 (method: speed of light).
    assert Infill(192, 64, 64).flops(model_shape("GSAI-ML/LLaDA-8B-Base", "x").active) == pytest.approx(174.9e12, rel=1e-3)


def test_a_rows_passes_and_canvas() -> None:
    work = infill_work(SamplerConfig(model="m", prompt_tokens=(4, 8), steps=6, layout="answer"), 10.0)
    # A prompt of 4 masks takes 4 passes, one of 8 takes 6; three tokens of the prefix.
    assert (work.masks, work.passes, work.canvas) == (6, 5, 19)
    guided = SamplerConfig(model="m", prompt_tokens=(8,), steps=6, guidance=1.0, max_target_tokens=5)
    assert (infill_work(guided, 10.0).passes, infill_work(guided, 10.0).canvas) == (12, 16)


def test_the_h200s_sampler_is_planned() -> None:
    """3.37 prompts/s compiled, 48 to 49% utilization not compiled (2026-11-26): neither is behind a rate."""
    model, work = model_shape("GSAI-ML/LLaDA-8B-Base", "x"), Infill(192, 64, 64)
    assert within(1 / infill_seconds(H200, model, work, joined=True), 3.37)
    plain = infill_seconds(H200, model, work, joined=False)
    assert within(work.flops(model.active) / plain / H200.device.flops, 0.485)


@pytest.mark.parametrize(("recorded", "measured"), [(True, 2.22), (False, 3.61)])
def test_the_h200s_update_is_planned(recorded: bool, measured: float) -> None:
    """Llama-3-8B's shape, 4 + 4 rows of 128 tokens, 64 of them response, 20 steps; the rates are from a 1B shape's attack."""
    cfg = TrainingConfig(updates=1, retain=RetainConfig(path="x"), cuda_graph=recorded, attack=AttackConfig(steps=20))
    tokens = UpdateTokens(512, 256, 512, 256, 512, 256)
    assert within(update_seconds(H200, LLAMA3_8B, tokens, cfg), measured)


# The demo as it was timed, and its seconds of generate, train, evaluate. AVX-512 (docs/experiments.md) is behind the rates of a
# CPU, AVX2 is not.
TIMED = str(Path(__file__).parents[2] / "fixtures" / "demo_2026_11_25.yaml")
DEMO = {True: (173, 474, 188), False: (315, 754, 289)}


@pytest.mark.parametrize("avx512", [True, False])
def test_the_demos_stages_are_planned_on_two_machines(avx512: bool) -> None:
    plan = plan_run(load_recipe(TIMED), processor(2, 24e9, avx512=avx512))
    assert [stage.name for stage in plan.stages] == ["generate", "train", "evaluate"]
    for stage, measured in zip(plan.stages, DEMO[avx512], strict=True):
        assert within(stage.seconds, measured), (stage.name, stage.seconds, measured)


def test_writing_reads_the_weights_once_a_step() -> None:
    model = model_shape("meta-llama/Meta-Llama-3-8B-Instruct", "x")
    one = answer_seconds(H200, model, Answers(1, 0, 100, 64), 2, launched=False)
    # 16 GB from 70% of 4.8 TB/s, 100 times, and 3 ms each; keys and values of 50 tokens add nothing to speak of.
    assert one == pytest.approx(100 * (2 * 8.03e9 / (0.7 * 4.8e12) + 3e-3), rel=0.01)
    # 64 rows share that reading, a 65th is a batch of its own.
    full = answer_seconds(H200, model, Answers(64, 0, 100, 64), 2, launched=False)
    assert full < 1.2 * one
    assert answer_seconds(H200, model, Answers(65, 0, 100, 64), 2, launched=False) == pytest.approx(2 * full, rel=0.01)


def test_planned_passes_are_those_of_rows() -> None:
    """The counts of a plan and those of real rows are one function: rows of any length give the same."""

    def row(tokens: int, response: int) -> Encoded:
        return Encoded([1] * tokens, (1, 2), (tokens - response, tokens))

    cfg = TrainingConfig(updates=1, retain=RetainConfig(path="x"), attack=AttackConfig(steps=3, iterate="best"))
    harmful = [HarmfulRow(row(10, 4), row(9, 3)), HarmfulRow(row(7, 2), row(8, 3))]
    retain = [row(20, 12)]
    assert update_passes(harmful, retain, cfg) == count_passes(UpdateTokens(17, 6, 17, 6, 20, 12), cfg)
    # By hand: 3 steps and the last look at 17 tokens, both responses 34, retain rows twice; backward without the looks.
    assert count_passes(UpdateTokens(17, 6, 17, 6, 20, 12), cfg).forward == 4 * 17 + 34 + 40
    assert count_passes(UpdateTokens(17, 6, 17, 6, 20, 12), cfg).backward == 3 * 17 + 34 + 20


def test_shapes_are_those_of_configurations() -> None:
    config = Qwen3Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    shape = shape_of_config(config.to_dict(), "config.json", "x")
    norms = sum(parameter.numel() for name, parameter in model.named_parameters() if "norm" in name)
    assert shape.stored == shape.active.parameters == sum(p.numel() for p in model.parameters()) - norms
    adapted = attach_lora(model, LoraConfig(rank=5), 0)
    assert shape.active.lora_parameters(5) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    experts = {**config.to_dict(), "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
    mixture = shape_of_config(experts, "config.json", "x")
    assert mixture.stored - mixture.active.parameters == 3 * 3 * 32 * 6 * 20
    with pytest.raises(InputError, match="sizes"):
        shape_of_config({"hidden_size": 8}, "config.json", "x")


@pytest.mark.parametrize(
    ("config", "stored", "active"),
    [
        (OlmoeConfig(vocab_size=50_304, num_experts=64, num_experts_per_tok=8, intermediate_size=1024), 6.92e9, 1.28e9),
        (MixtralConfig(num_local_experts=8, num_experts_per_tok=2), 46.7e9, 12.9e9),
    ],
    ids=["OLMoE-1B-7B", "Mixtral-8x7B"],
)
def test_experts_whose_width_is_called_as_that_of_a_layer(config: PreTrainedConfig, stored: float, active: float) -> None:
    """Parameters as the papers state them (arXiv 2409.02060, 2401.04088)."""
    found = shape_of_config(config.to_dict(), "config.json", "x")
    assert found.stored == pytest.approx(stored, rel=0.01)
    assert found.active.parameters == pytest.approx(active, rel=0.01)


def test_known_sizes_are_the_published_ones() -> None:
    # Parameters as their model cards state them.
    stated = {
        "meta-llama/Meta-Llama-3-8B-Instruct": 8.03e9,
        "Qwen/Qwen2.5-14B-Instruct": 14.77e9,
        "Qwen/Qwen2.5-1.5B-Instruct": 1.54e9,
        "Qwen/Qwen3-4B-Instruct-2507": 4.02e9,
        "GSAI-ML/LLaDA-8B-Base": 8.02e9,
        "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1": 0.596e9,
        "google/gemma-2b": 2.51e9,
        "google/gemma-3-12b-it": 11.8e9,
        "embedded:smollm2-135m-instruct": 134.5e6,
    }
    for name, parameters in stated.items():
        assert KNOWN[name].parameters == pytest.approx(parameters, rel=0.01), name


def test_a_folders_config_is_read(tmp_path) -> None:
    config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
    config.save_pretrained(tmp_path)
    assert model_shape(str(tmp_path), "target.model").active.layers == 3
    multimodal = {"text_config": Gemma2Config(num_hidden_layers=2).to_dict(), "model_type": "gemma3"}
    (tmp_path / "config.json").write_text(json.dumps(multimodal))
    assert model_shape(str(tmp_path), "target.model").active.layers == 2
    llada = {"model_type": "llada", "d_model": 64, "n_layers": 5, "n_heads": 4, "mlp_hidden_size": 96, "embedding_size": 80,
             "max_sequence_length": 128, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "block_type": "llama", "block_group_size": 1,
             "layer_norm_type": "rms", "attention_layer_norm": False, "include_bias": False, "activation_type": "silu",
             "rope": True, "alibi": False, "scale_logits": False, "input_emb_norm": False, "clip_qkv": None}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(llada))
    assert model_shape(str(tmp_path), "sampler.model").active.hidden == 96


def test_a_driver_name_finds_its_device() -> None:
    names = {"NVIDIA H200": "h200", "NVIDIA H100 PCIe": "h100-pcie", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA L40S": "l40s",
             "NVIDIA A100-SXM4-80GB": "a100-80", "NVIDIA GeForce RTX 4090": "rtx4090"}  # fmt: skip
    assert {name: device.name for name in names if (device := find_device(name))} == names
    assert find_device("Tesla T4") is None
    assert math.isclose(processor(2, 1.0, avx512=True).flops, 206e9)


def test_a_plan_needs_neither_torch_nor_ray() -> None:
    program = (
        "import sys; from dat_ray.config.loading import load_recipe; from dat_ray.planning.estimate import *;"
        "recipe = load_recipe('dat-llama3-8b'); plan_run(recipe, choose_device(recipe));"
        "assert not {'torch', 'ray', 'transformers', 'vllm'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
