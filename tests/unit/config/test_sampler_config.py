"""The sampler's section: what it accepts for lengths, and which settings contradict each other."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from pydantic import ValidationError

from dat_ray.config.loading import load_recipe
from dat_ray.config.models import SamplerConfig, TargetConfig
from dat_ray.diffusion.law import Law
from dat_ray.errors import InputError
from dat_ray.models.identity import sampler_fingerprint


@pytest.mark.parametrize(
    ("given", "lengths"), [(64, (64,)), ([8, 12], (8, 12)), ({"min": 5, "max": 8}, (5, 6, 7, 8)), ({"min": 3, "max": 3}, (3,))]
)
def test_prompt_lengths_are_a_number_a_list_or_a_range(given, lengths) -> None:
    assert SamplerConfig(model="m", prompt_tokens=given, steps=3).prompt_tokens == lengths


@pytest.mark.parametrize(
    "given", [{"min": 8}, {"min": 9, "max": 8}, {"min": 0, "max": 4}, {"min": 1, "max": 4, "step": 2}, [], 0]
)
def test_other_prompt_lengths_are_refused(given) -> None:
    with pytest.raises(ValidationError):
        SamplerConfig(model="m", prompt_tokens=given)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threshold": 0.9, "entropy_bound": 1.0}, "give one of them"),
        ({"threshold": 0.9, "order": "random"}, "set order to low_confidence"),
        ({"entropy_bound": 0.1, "order": "random"}, "set order to low_confidence"),
        ({"tempered": False}, "raise temperature"),
        ({"refine": "random", "steps": 8, "prompt_tokens": 8}, "raise steps 8 above 8"),
        ({"backend": "vllm", "compile": True}, "compile is for backend torch"),
        ({"backend": "torch", "tensor_parallel": 2}, "needs backend vllm"),
        ({"threshold": 1.5}, "less than or equal to 1"),
        ({"guidance": -1.0}, "greater than or equal to 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SamplerConfig(model="m", **settings)


def test_both_backends_of_the_sampler_have_8_bits_and_of_a_target_one() -> None:
    assert SamplerConfig(model="m", backend="torch", quantization="fp8").quantization == "fp8"
    assert TargetConfig(model="m", backend="vllm", quantization="fp8").quantization == "fp8"
    with pytest.raises(ValidationError, match="quantization fp8 needs backend vllm"):
        TargetConfig(model="m", backend="torch", quantization="fp8")


def test_a_recipe_refines_past_its_prompts_and_gives_a_shared_model_its_gpus() -> None:
    changes = ["sampler.refine=random", "sampler.steps=40"]
    assert load_recipe("demo", changes).sampler.refine == "random"
    with pytest.raises(InputError, match=r"sampler.steps 40 exceeds the longest prompt"):
        load_recipe("demo", changes[1:])
    with pytest.raises(InputError, match=r"tensor_parallel 2 exceeds cluster.sampler.num_gpus 1"):
        load_recipe("demo", ["sampler.tensor_parallel=2", "cluster.sampler.num_gpus=1"])


def test_every_parameter_of_the_law_is_a_field_with_the_same_default() -> None:
    for field in dataclasses.fields(Law):
        declared = SamplerConfig.model_fields[field.name]
        assert declared.description, field.name
        if field.name != "steps":
            assert declared.default == field.default, field.name


def test_a_sampler_is_its_weights_and_what_shapes_a_prompt() -> None:
    sampler = SamplerConfig(
        model="m", dtype="float32", layout="chat", prompt_tokens=(9, 11, 13, 16), steps=10, temperature=0.0, max_target_tokens=24
    )
    base = sampler_fingerprint(sampler, "weights")
    # Written down: the seeds of rows come from it.
    assert base == "067ec54a3f927018"
    same = {"steps_per_call": 9, "batch_size": 1, "max_batched_tokens": 64, "likelihood_samples": 2, "compile": True}
    assert sampler_fingerprint(sampler.model_copy(update={**same, "model": "elsewhere"}), "weights") == base
    changes: list[dict[str, Any]] = [
        {"guidance": 1.0}, {"dtype": "float16"}, {"backend": "torch"}, {"prompt_tokens": (8,)}, {"layout": "answer"},
    ]  # fmt: skip
    others = {sampler_fingerprint(sampler.model_copy(update=change), "weights") for change in changes}
    others |= {sampler_fingerprint(sampler, "other weights"), sampler_fingerprint(sampler, None)}
    assert len(others - {base}) == len(changes) + 2
