"""The sampler under both backends: one law, the same tokens, whatever the batch.

One vLLM engine serves a tiny random model (about 30 s to start), one more the shipped sampler.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dat_ray.config.loading import load_recipe
from dat_ray.config.models import SamplerConfig
from dat_ray.diffusion.canvas import SamplerSpec, build_canvas
from dat_ray.diffusion.law import Law
from dat_ray.engines.base import InfillRequest
from dat_ray.engines.factory import build_sampler
from dat_ray.engines.sampler_setup import SamplerSetup
from dat_ray.engines.torch_sampler import TorchSampler
from dat_ray.engines.vllm_sampler import VllmSampler
from dat_ray.errors import DatError, InputError
from dat_ray.models.embedded import WEIGHTS
from dat_ray.models.loading import load_causal_lm, load_tokenizer
from dat_ray.models.samplers import resolve_sampler
from tests.unit.diffusion.literal_law import literal_infill

pytestmark = pytest.mark.slow

MASK = 16
REQUESTS = [
    InfillRequest(f"row{i}", "Sure, here is a poem about the " + "sea " * (i % 4), (3, 5, 8)[i % 3], seed)
    for i, seed in enumerate([0, 1, 2**63 - 1, 77, 77, 4242])
]


@pytest.fixture(scope="module")
def folder(tiny_sampler: str) -> str:
    return tiny_sampler


@pytest.fixture(scope="module")
def config(folder) -> SamplerConfig:
    return SamplerConfig(
        model=folder, backend="vllm", dtype="float32", layout="chat", prompt_tokens=(3, 5, 8), steps=4,
        max_target_tokens=16, batch_size=4, max_batched_tokens=64,
    )  # fmt: skip


@pytest.fixture(scope="module")
def served(config, vllm_process) -> VllmSampler:
    """One engine; the law is the host's, so tests may exchange it (see `with_law`)."""
    sampler = build_sampler(config, threads=1)
    assert isinstance(sampler, VllmSampler)
    return sampler


def with_law(served: VllmSampler, monkeypatch, config: SamplerConfig) -> VllmSampler:
    monkeypatch.setattr(served, "_setup", SamplerSetup.read(config, config.model))
    return served


LAWS = {
    "greedy": {},
    "tempered": {"temperature": 0.8},
    "random order, nothing hidden": {"temperature": 0.8, "order": "random", "remask_condition": False},
    "guided, by threshold": {"guidance": 1.0, "threshold": 0.02},
    "by entropy": {"entropy_bound": 12.0},
    "no token beside its like": {"no_repeats": True, "steps": 3, "guidance": 1.0},
    "refined at random": {"refine": "random", "refine_tokens": 3, "steps": 11},
    "refined": {"refine": "low_confidence", "refine_tokens": 2, "steps": 11, "steps_per_call": 3},
}


@pytest.mark.parametrize("change", LAWS.values(), ids=LAWS.keys())
def test_both_backends_write_the_same_prompts(config, folder, served, monkeypatch, change):
    config = config.model_copy(update=change)
    expected = TorchSampler(config, folder, threads=1).infill(REQUESTS)
    found = with_law(served, monkeypatch, config).infill(REQUESTS)
    assert [x.token_ids for x in found] == [x.token_ids for x in expected]
    assert [(x.row_id, x.prompt, x.nfe) for x in found] == [(x.row_id, x.prompt, x.nfe) for x in expected]
    assert [x.logprob for x in found] == pytest.approx([x.logprob for x in expected], abs=1e-3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_alone_equals_the_row_in_a_batch(config, served, monkeypatch, temperature):
    sampler = with_law(served, monkeypatch, config.model_copy(update={"temperature": temperature}))
    together = sampler.infill(REQUESTS)
    backwards = sampler.infill(REQUESTS[::-1])[::-1]
    alone = [sampler.infill([request])[0] for request in REQUESTS]
    assert [x.token_ids for x in together] == [x.token_ids for x in backwards] == [x.token_ids for x in alone]


def test_prompts_have_the_asked_length_and_nothing_banned(config, folder, served):
    banned = set(SamplerSpec.read(folder).banned_token_ids)
    assert {0, 1, 2, MASK} <= banned
    for request, result in zip(REQUESTS, served.infill(REQUESTS), strict=True):
        assert result.row_id == request.row_id
        assert len(result.token_ids) == request.prompt_tokens
        assert not banned & set(result.token_ids)
        assert result.nfe == min(config.steps, request.prompt_tokens)
        assert result.logprob < 0


def test_a_call_of_the_engine_takes_several_steps(config, served, monkeypatch):
    calls, encode = [], served._llm.encode

    def counted(*arguments, **options):
        calls.append(len(arguments[0]))
        return encode(*arguments, **options)

    monkeypatch.setattr(served._llm, "encode", counted)
    requests = [InfillRequest(str(seed), "Sure, here is a poem", 8, seed) for seed in range(4)]
    several = with_law(served, monkeypatch, config.model_copy(update={"steps_per_call": 4})).infill(requests)
    assert calls == [4]
    one = with_law(served, monkeypatch, config.model_copy(update={"steps_per_call": 1})).infill(requests)
    assert calls == [4] * 5
    assert [x.token_ids for x in one] == [x.token_ids for x in several]


def test_rows_differ_by_their_seed(served):
    requests = [InfillRequest("a", "Sure, here is a poem about the sea", 8, seed) for seed in range(4)]
    assert len({result.token_ids for result in served.infill(requests)}) > 1


def test_a_prompt_longer_than_the_recipe_says_is_refused(served):
    with pytest.raises(InputError, match=r"prompt_tokens = 9: the sampler was set up for at most 8"):
        served.infill([InfillRequest("a", "Sure", 9, 0)])


def test_the_longest_row_fits_the_engine(served):
    request = InfillRequest("a", "deep blue sea " * 50, 8, 5)
    assert len(served.infill([request])[0].token_ids) == 8


def test_a_model_that_is_no_sampler_is_refused(config, tiny_llama, vllm_process):
    with pytest.raises(InputError, match=r"no masked diffusion model .*`dat adapt` makes one of a causal chat model"):
        build_sampler(config.model_copy(update={"model": tiny_llama}), threads=1)


def test_another_layout_than_the_trained_one_is_refused(config):
    for backend in ("torch", "vllm"):
        with pytest.raises(InputError, match=r"sampler\.layout = 'answer': .* trained with layout chat"):
            build_sampler(config.model_copy(update={"layout": "answer", "backend": backend}), threads=1)


def test_a_causal_config_cannot_be_served(config, folder, tmp_path, vllm_process):
    """Without `is_causal: false` vLLM would run the model causally and sample nonsense."""
    path = Path(shutil.copytree(folder, tmp_path / "causal"))
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**content, "is_causal": True}))
    with pytest.raises(DatError, match=r"could not start .* needs `is_causal: false`") as failure:
        build_sampler(config.model_copy(update={"model": str(path)}), threads=1)
    assert "\n" not in str(failure.value)


def test_the_fingerprint_covers_what_changes_a_prompt(config, folder, tmp_path):
    def fingerprint(**change) -> str:
        return SamplerSetup.read(config.model_copy(update=change), folder).fingerprint

    base = fingerprint()
    assert base == fingerprint(batch_size=1) == fingerprint(max_batched_tokens=512) == fingerprint(steps_per_call=9)
    changes: list[dict[str, Any]] = [
               {"temperature": 1.0}, {"steps": 3}, {"order": "random"}, {"remask_condition": False},
               {"dtype": "bfloat16"}, {"backend": "torch"}, {"max_target_tokens": 8}]  # fmt: skip
    assert len({base, *(fingerprint(**change) for change in changes)}) == len(changes) + 1
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert fingerprint(model=str(moved)) == base
    weights = Path(moved) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert fingerprint(model=str(moved)) != base


def literally(config: SamplerConfig, request: InfillRequest) -> tuple[int, ...]:
    """The tokens of the law written out; none where rounding decides."""
    folder = resolve_sampler(config.model)
    model, tokenizer, spec = load_causal_lm(folder, "float32"), load_tokenizer(folder), SamplerSpec.read(folder)
    canvas = build_canvas(tokenizer, spec, request.target, request.prompt_tokens, config.max_target_tokens)
    done = literal_infill(
        model, list(canvas.ids), range(*canvas.prompt_span), range(*canvas.condition_span), seed=request.seed,
        law=Law(config.steps), banned=list(spec.banned_token_ids), mask=spec.mask_token_id, shift=spec.shift,
    )  # fmt: skip
    return () if done.undecided else tuple(done.tokens)


def test_the_shipped_sampler_is_the_same_under_both_backends(vllm_process):
    if not (WEIGHTS / "smollm2-135m-infill").is_dir():
        pytest.skip("dat_ray/models/weights/smollm2-135m-infill is not in this checkout")
    # Without chance and guidance, so that it can be written out, and in a type that every processor multiplies.
    law = ("dtype=float32", "remask_condition=true", "guidance=0.0", "steps=10", "temperature=0.0")
    config = load_recipe("demo", [f"sampler.{setting}" for setting in law]).sampler
    expected_tokens = {
        ("Sure, here is a recipe for bread", 9, 1000): (41586, 549, 638, 288, 919, 253, 2232, 6956, 30),
        ("The capital of France is Paris.", 11, 1001): (31530, 549, 563, 260, 768, 3575, 2240, 282, 7042, 4649, 30),
        ("Of course! A short plan for a picnic in the park", 9, 1004): (57, 737, 288, 1252, 327, 253, 31920, 5949, 30),
    }
    requests = [InfillRequest(target, target, masks, seed) for target, masks, seed in expected_tokens]
    expected = build_sampler(config.model_copy(update={"backend": "torch"}), threads=1).infill(requests)
    found = build_sampler(config, threads=1).infill(requests)
    assert [x.token_ids for x in found] == [x.token_ids for x in expected]
    literal = [literally(config, request) for request in requests]
    assert any(literal), "every row hangs on rounding"
    assert all(not tokens or x.token_ids == tokens for x, tokens in zip(found, literal, strict=True))
    # As they were when these weights were shipped: a change of the law would show.
    assert [x.token_ids for x in found] == list(expected_tokens.values())
    assert [x.logprob for x in found] == pytest.approx([x.logprob for x in expected], abs=1e-3)


def test_registering_again_changes_nothing(served):
    """vLLM calls the entry point in every process, also after the model was registered by hand."""
    from vllm import ModelRegistry

    from dat_ray.engines import vllm_plugin

    before = {name: ModelRegistry.models[name] for name in vllm_plugin.ARCHITECTURES}
    vllm_plugin.register()
    assert all(ModelRegistry.models[name] is model for name, model in before.items())
