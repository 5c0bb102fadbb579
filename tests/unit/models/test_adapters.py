"""Adapters against PEFT itself: what is accepted merges to what PEFT computes, in float32; the rest is refused by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dat_ray.config.training import LoraConfig
from dat_ray.errors import InputError
from dat_ray.models.adapter_settings import _ALLOWED, _FREE, check_adapter_settings, read_adapter_settings
from dat_ray.models.adapters import attach_lora, check_adapter, check_lora_targets, load_adapter
from dat_ray.models.loading import load_causal_lm, model_fingerprint
from dat_ray.models.merging import merge_adapter

IDS = torch.arange(20)[None]
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16, "vocab_size": 64, "initializer_range": 0.3, "max_position_embeddings": 64, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 2, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 64, "initializer_range": 0.3,
        "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


def make_base(folder: Path, layout: str = "llama", **sizes: Any) -> str:
    config = AutoConfig.for_model(layout, **(GPT2 if layout == "gpt2" else SIZES) | sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def trained(model: PreTrainedModel, **options: Any) -> peft.PeftModel:
    """An adapter of PEFT's own making whose trainable weights have moved."""
    options = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
    with torch.random.fork_rng():
        torch.manual_seed(1)
        adapted = peft.get_peft_model(model, peft.LoraConfig(**options)).eval()
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return adapted


def store(model: peft.PeftModel, base: str, folder: Path, **options: Any) -> str:
    model.save_pretrained(str(folder), **options)
    (folder / "dat_adapter.json").write_text(json.dumps({"base_fingerprint": model_fingerprint(base)}))
    return str(folder)


PLAIN: dict[str, dict[str, Any]] = {
    "default": {},
    "rank-stabilized": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}, "alpha_pattern": {"down_proj": 30}},
    "patterns and rank-stabilized": {"use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 5}},
    "some layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    "a regular expression": {"target_modules": r".*\.1\..*(q|o)_proj"},
    "exclusions": {"exclude_modules": ["o_proj"]},
    "dropout": {"lora_dropout": 0.5},
    "random start": {"init_lora_weights": False},
    "gaussian start": {"init_lora_weights": "gaussian"},
    "orthogonal start": {"init_lora_weights": "orthogonal"},
    "fan_in_fan_out": {"fan_in_fan_out": True},  # PEFT corrects it for linear layers
    "the untied head": {"target_modules": ["lm_head", "q_proj"]},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", PLAIN)
def test_what_is_accepted_merges_to_what_peft_computes(name: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    model = trained(load_causal_lm(base, "float32"), **PLAIN[name])
    # Otherwise PEFT stores the untouched head too.
    adapter = store(model, base, tmp_path / "adapter", save_embedding_layers=False)
    assert_equals_peft(model, base, adapter, tmp_path / "merged")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("mistral", {"use_rslora": True}),
        ("qwen2", {}),
        ("gemma2", {}),
        ("phi3", {"rank_pattern": {"qkv_proj": 2}}),
        ("gpt2", {}),
        ("gpt2", {"fan_in_fan_out": True, "target_modules": ["c_attn"], "use_rslora": True}),
        ("qwen3_moe", {"target_modules": ["q_proj", "o_proj"]}),
    ],
)
def test_other_layouts_merge_to_what_peft_computes(layout: str, options: dict[str, Any], tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", layout)
    model = trained(load_causal_lm(base, "float32"), **options)
    assert_equals_peft(model, base, store(model, base, tmp_path / "adapter"), tmp_path / "merged")


def assert_equals_peft(model: peft.PeftModel, base: str, adapter: str, out: Path) -> None:
    expected = model(IDS).logits
    untouched = load_causal_lm(base, "float32")(IDS).logits
    assert float((untouched - expected).abs().max()) > 0.05, "an adapter that does nothing shows nothing"
    attached = load_adapter(load_causal_lm(base, "float32"), adapter)
    torch.testing.assert_close(attached(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    merged = load_causal_lm(merge_adapter(base, adapter, str(out)), "float32")
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    reference = dict(model.merge_and_unload().named_parameters())
    for name, weight in merged.named_parameters():
        torch.testing.assert_close(weight, reference[name], rtol=1e-5, atol=1e-6)


REFUSED: dict[str, dict[str, Any]] = {
    "use_dora": {"use_dora": True},
    "bias": {"bias": "all", "target_modules": ["q_proj"]},
    "lora_bias": {"lora_bias": True, "target_modules": ["q_proj"]},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "trainable_token_indices": {"trainable_token_indices": [3, 5]},
    "alora_invocation_tokens": {"alora_invocation_tokens": [3, 5]},
    "layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
    "target_parameters": {"target_parameters": ["q_proj.weight"], "target_modules": ["o_proj"]},
    "init_lora_weights": {"init_lora_weights": "pissa"},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("option", REFUSED)
def test_adapters_that_peft_computes_by_another_rule_are_refused_wherever_they_come_in(option: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", attention_bias=True)
    adapter = store(trained(load_causal_lm(base, "float32"), **REFUSED[option]), base, tmp_path / "adapter")
    doors: list[Callable[[], object]] = [
        lambda: load_adapter(load_causal_lm(base, "float32"), adapter),
        lambda: merge_adapter(base, adapter, str(tmp_path / "merged")),
        lambda: read_adapter_settings(adapter),
    ]
    for door in doors:
        with pytest.raises(InputError, match=rf"adapter = .* has {option} = ") as caught:
            door()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica", "something-new"])
def test_starts_that_change_the_base_are_refused(start: str) -> None:
    with pytest.raises(InputError, match=f'has init_lora_weights = "{start}"'):
        check_adapter_settings({"peft_type": "LORA", "init_lora_weights": start}, "folder")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_the_remedy_of_such_a_start_is_right(start: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    options = {"r": 4, "lora_alpha": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "init_lora_weights": start}
    model = peft.get_peft_model(load_causal_lm(base, "float32"), peft.LoraConfig(**options)).eval()
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(str(tmp_path / "start"))
    model.peft_config["default"].init_lora_weights = start
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data *= 1.3
    expected = model(IDS).logits
    adapter = store(model, base, tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    merged = load_causal_lm(merge_adapter(base, adapter, str(tmp_path / "merged")), "float32")
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-3, atol=1e-3)


def test_every_option_of_peft_is_decided() -> None:
    options = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert options - {"runtime_config"} >= _FREE | _ALLOWED.keys()
    for option in sorted(options - _FREE - {"peft_type"}):
        with pytest.raises(InputError, match=f"has {option} = "):
            check_adapter_settings({"peft_type": "LORA", option: ["some value"]}, "folder")
    nothing: list[Any] = [None, False, [], {}]
    for empty in nothing:
        check_adapter_settings({"peft_type": "LORA", "an_option_of_a_later_version": empty}, "folder")
    with pytest.raises(InputError, match="an_option_of_a_later_version"):
        check_adapter_settings({"peft_type": "LORA", "an_option_of_a_later_version": 1}, "folder")
    with pytest.raises(InputError, match="is of type LOHA"):
        check_adapter_settings({"peft_type": "LOHA"}, "folder")
    with pytest.raises(InputError, match="task_type"):
        check_adapter_settings({"peft_type": "LORA", "task_type": "SEQ_CLS"}, "folder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {name: t for name, t in w.items() if "layers.1.mlp.up" not in name}, r"lacks '.*layers\.1\.mlp\.up_proj"),
        (lambda w: {name.replace("layers.1.", "layers.7."): t for name, t in w.items()}, r"holds '.*layers\.7"),
        (lambda w: {name: t[:2] if name.endswith("q_proj.lora_A.weight") else t for name, t in w.items()}, r"shape \[2, 32\]"),
        (lambda w: {name.removeprefix("base_model.model."): t for name, t in w.items()}, "does not ask for"),
    ],
)
def test_tensors_that_peft_would_ignore_or_miss_are_named(change: Callable, message: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = store(trained(load_causal_lm(base, "float32")), base, tmp_path / "adapter")
    path = Path(adapter) / "adapter_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)
    with pytest.raises(InputError, match=message):
        check_adapter(adapter, base)


@pytest.mark.parametrize(
    ("layout", "targets", "message"),
    [
        ("qwen3_moe", "all-linear", r"training\.lora\.targets = 'all-linear': adapts .* \(Qwen3Moe\w+\), .*: name linear layers"),
        ("mixtral", "all-linear", r"\(Mixtral"),
        ("qwen3_moe", ("gate_proj", "q_proj"), "fused into gate_up_proj"),
        ("llama", ("embed_tokens",), r"adapts model\.embed_tokens \(Embedding\)"),
        ("llama", ("q_proj", "embed_tokens"), r"\(Embedding\)"),
        ("llama", ("c_attn",), "not found in the base model"),
    ],
)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_targets_without_a_known_rule_are_refused_before_a_run(
    layout: str, targets: str | tuple[str, ...], message: str, dropout: float, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", layout)
    config = LoraConfig(rank=2, targets=targets, dropout=dropout)
    with pytest.raises(InputError, match=message) as caught:
        check_lora_targets(base, config)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=message):
        attach_lora(load_causal_lm(base, "float32"), config, 0)


def test_a_tied_head_is_refused_and_an_untied_one_is_not(tmp_path: Path) -> None:
    config = LoraConfig(rank=2, targets=("lm_head",))
    with pytest.raises(InputError, match="adapts lm_head, which is tied to the embedding"):
        check_lora_targets(make_base(tmp_path / "tied", tie_word_embeddings=True), config)
    check_lora_targets(make_base(tmp_path / "untied", tie_word_embeddings=False), config)


def test_a_base_that_stores_its_weights_under_other_names_is_refused_before_a_run(tmp_path: Path) -> None:
    """Published GPT-2 lacks the prefix, which transformers adds on loading; the names of a merge would not fit."""
    base = make_base(tmp_path / "base", "gpt2")
    path = tmp_path / "base" / "model.safetensors"
    save_file({name.removeprefix("transformer."): t for name, t in load_file(path).items()}, path, metadata={"format": "pt"})
    load_causal_lm(base, "float32")
    with pytest.raises(InputError, match=r"adapts 'transformer\.h\.0\.attn\.c_attn', which .* does not store"):
        check_lora_targets(base, LoraConfig())


@pytest.mark.parametrize("layout", ["gpt2", "mistral", "qwen3", "phi3"])
def test_targets_that_can_be_trained_pass(layout: str, tmp_path: Path) -> None:
    check_lora_targets(make_base(tmp_path / "base", layout), LoraConfig())
