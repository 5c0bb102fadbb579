"""The target under both backends: the same answers, the same likelihoods, adapters, and clear failures.

One vLLM engine serves the module, over a tiny random Llama with SmolLM2's tokenizer; it takes about 30 s to start.
"""

from __future__ import annotations

import math

import pytest
import torch

from dat_ray.config.models import TargetConfig
from dat_ray.config.training import LoraConfig
from dat_ray.engines import vllm_env
from dat_ray.engines.factory import build_target
from dat_ray.engines.torch_target import TorchTarget
from dat_ray.engines.vllm_target import _scored
from dat_ray.errors import DatError, InputError
from dat_ray.models.adapters import attach_lora, save_adapter
from dat_ray.models.loading import load_causal_lm, load_tokenizer, model_fingerprint

pytestmark = pytest.mark.slow

PROMPTS = [
    "How are you?",
    "Tell me a story about a boat and the sea.",
    "x",
    "Why is the sky blue? " * 8,
    "Name three <|im_end|> animals.",
]
RESPONSES = ["Sure, here is", "Once", "The sea is wide and deep", "Because", "1. A cat"]


@pytest.fixture(scope="module")
def config(tiny_llama) -> TargetConfig:
    return TargetConfig(model=tiny_llama, backend="vllm", dtype="float32", max_model_len=256, batch_size=4, kv_cache_gib=0.05)


@pytest.fixture(scope="module")
def reference(config, tiny_llama) -> TorchTarget:
    return TorchTarget(config, tiny_llama, threads=1)


@pytest.fixture(scope="module")
def served(config, vllm_process):
    return build_target(config, threads=1)


@pytest.fixture(scope="module")
def adapter(tiny_llama, tmp_path_factory) -> str:
    """A LoRA adapter that moves the model by a good deal."""
    path = str(tmp_path_factory.mktemp("adapters") / "adapter")
    model = attach_lora(load_causal_lm(tiny_llama, "float32"), LoraConfig(rank=4, alpha=8), seed=1)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_adapter(model, path, model_fingerprint(tiny_llama))
    return path


def test_torch_answers_do_not_depend_on_batch_mates(reference):
    together = reference.complete(PROMPTS, 12)
    assert together == [reference.complete([prompt], 12)[0] for prompt in PROMPTS]
    assert [answer.tokens for answer in together] == [12] * len(PROMPTS)
    seeds = [3, 2**63 - 1, 0, 7, 7]
    sampled = reference.complete(PROMPTS, 12, temperature=1.0, seeds=seeds)
    assert sampled == [reference.complete([prompt], 12, 1.0, [seed])[0] for prompt, seed in zip(PROMPTS, seeds, strict=True)]
    assert sampled != reference.complete(PROMPTS, 12, temperature=1.0, seeds=[seed ^ 1 for seed in seeds])


def test_torch_answers_equal_generate(reference, tiny_llama):
    model, tokenizer = load_causal_lm(tiny_llama, "float32"), load_tokenizer(tiny_llama)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[1]}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    expected = model.generate(**ids, max_new_tokens=10, do_sample=False)[0, ids["input_ids"].shape[1] :]
    answer = reference.complete(PROMPTS[:3], 10)[1]
    assert answer.text == tokenizer.decode(expected, skip_special_tokens=True)


def test_an_answer_ends_at_a_stop_token_and_does_not_count_it(config, tiny_llama):
    target = TorchTarget(config, tiny_llama, threads=1)
    free = target._generate(target._text.prompt_ids(PROMPTS[:2]), [8, 8], 0.0, [0, 0])
    target._text.stop_ids = (free[0][3],)
    answers = target.complete(PROMPTS[:2], 8)
    assert (answers[0].tokens, answers[0].finished) == (free[0].index(free[0][3]), True)
    assert (answers[1].tokens, answers[1].finished) == (8, False)


def test_torch_logprob_is_the_mean_of_the_chosen_tokens(reference, tiny_llama):
    model, tokenizer = load_causal_lm(tiny_llama, "float32"), load_tokenizer(tiny_llama)
    prompt_text = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[0]}], add_generation_prompt=True, tokenize=False
    )
    prompt = tokenizer(prompt_text, add_special_tokens=False).input_ids
    response = tokenizer(RESPONSES[0], add_special_tokens=False).input_ids
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double()
    steps = [logits[len(prompt) - 1 + t].log_softmax(-1)[token].item() for t, token in enumerate(response)]
    found = reference.logprob(PROMPTS, RESPONSES)[0]
    assert found == pytest.approx(math.fsum(steps) / len(steps), abs=1e-5)


def test_both_backends_answer_and_score_alike(reference, served):
    assert served.complete(PROMPTS, 12) == reference.complete(PROMPTS, 12)
    assert served.logprob(PROMPTS, RESPONSES) == pytest.approx(reference.logprob(PROMPTS, RESPONSES), abs=1e-3)
    # A conversation: the earlier turns, of the user and of the model, count; what was said in another row does not.
    histories = [(), ("Name a color.", "Red."), ("Hello", "Hi.", "Name a sea.", "The North Sea."), (), ("x", "y")]
    talked = served.complete(PROMPTS, 12, histories=histories)
    assert talked == reference.complete(PROMPTS, 12, histories=histories)
    alone = served.complete(PROMPTS, 12)
    assert [one == other for one, other in zip(talked, alone, strict=True)] == [not turns for turns in histories]


def test_scoring_is_right_when_the_response_itself_is_in_the_prefix_cache(reference, served):
    """A long response, scored twice: the second time vLLM finds its blocks in the cache."""
    prompts, responses = PROMPTS[3:4], ["The light of the sun is scattered by the air. " * 10]
    expected = pytest.approx(reference.logprob(prompts, responses), abs=1e-3)
    assert served.logprob(prompts, responses) == expected
    rows = served._text.scored(prompts, responses)
    # Without the second pass this row would be scored from memory that nobody wrote.
    assert not _scored(rows[0], served._score(rows, skip_cache=False)[0])
    assert served.logprob(prompts, responses) == expected


def test_vllm_sampling_depends_on_the_seed_alone(served):
    seeds = [3, 2**63 - 1, 0, 7, 7]
    together = served.complete(PROMPTS, 8, temperature=1.0, seeds=seeds)
    assert together[1:2] == served.complete(PROMPTS[1:2], 8, temperature=1.0, seeds=seeds[1:2])
    assert together != served.complete(PROMPTS, 8, temperature=1.0, seeds=[5] * 5)


def test_no_rows_in_no_rows_out(reference, served):
    for target in (reference, served):
        assert target.complete([], 4) == []
        assert target.logprob([], []) == []


def test_what_does_not_fit_is_named(reference, served):
    for target in (reference, served):
        with pytest.raises(InputError, match=r"target\.max_model_len = 256: a prompt takes \d+ tokens"):
            target.complete(["word " * 400], 4)
        with pytest.raises(InputError, match="a prompt with its response takes"):
            target.logprob(["hi"], ["word " * 400])
        with pytest.raises(InputError, match="one seed for each of 2 rows"):
            target.complete(["a", "b"], 4, temperature=1.0, seeds=[1])


def test_torch_attaches_an_adapter_and_vllm_serves_it_merged(config, reference, adapter, tmp_path, monkeypatch, vllm_process):
    monkeypatch.setenv("DAT_CACHE", str(tmp_path / "cache"))
    attached = build_target(config.model_copy(update={"backend": "torch"}), threads=1, adapter=adapter)
    assert attached.complete(PROMPTS, 8) != reference.complete(PROMPTS, 8)
    merged = build_target(config, threads=1, adapter=adapter)
    assert merged.complete(PROMPTS, 8) == attached.complete(PROMPTS, 8)
    assert merged.logprob(PROMPTS, RESPONSES) == pytest.approx(attached.logprob(PROMPTS, RESPONSES), abs=1e-3)


def test_an_engine_that_cannot_start_says_why_in_one_line(config, vllm_process):
    with pytest.raises(DatError, match=r"vLLM could not start .*max_model_len \(100000\)") as failure:
        build_target(config.model_copy(update={"max_model_len": 100_000}), threads=1)
    assert "\n" not in str(failure.value)


def test_a_folder_without_weights_is_refused(config, tmp_path, vllm_process):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DatError):
        build_target(config.model_copy(update={"model": str(tmp_path)}), threads=1)


def test_threads_cannot_change_once_vllm_runs(config, served):
    with pytest.raises(DatError, match="start a new process"):
        vllm_env.prepare(2)
