"""A model in Llama 2's style, whose tokenizer has no template: both backends read and score the same tokens.

One vLLM engine serves the module; it takes about 30 s to start.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dat_ray.config.models import TargetConfig
from dat_ray.engines.factory import build_target
from dat_ray.engines.torch_target import TorchTarget
from tests.unit.models.tokenizers_of_kinds import LLAMA2, make_kind

pytestmark = pytest.mark.slow

# The option is read, and a date that nobody sets would be today's.
TEMPLATE = "{{ bos_token }}{{ tone }} {{ strftime_now('%d %b %Y') }}\n" + LLAMA2.replace("bos_token + ", "")
PROMPTS = ["How are you today?", "what (and when)?", "2 plus 2 </s>"]
RESPONSES = ["Sure, here you are", "12 of them", "It is so."]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TargetConfig:
    folder: Path = tmp_path_factory.mktemp("models") / "llama2"
    tokenizer = make_kind("Llama", None)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=1, initializer_range=0.2, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return TargetConfig(
        model=str(folder),
        dtype="float32",
        max_model_len=256,
        kv_cache_gib=0.05,
        chat_template=TEMPLATE,
        template_options={"tone": "plain"},
        template_date="2019-01-02",
    )


@pytest.fixture(scope="module")
def reference(config: TargetConfig) -> TorchTarget:
    return TorchTarget(config, config.model, threads=1)


def test_both_backends_answer_go_on_and_score_alike(config: TargetConfig, reference: TorchTarget, vllm_process: None) -> None:
    served = build_target(config, threads=1)
    assert served.complete(PROMPTS, 12) == reference.complete(PROMPTS, 12)
    begun = ["Sure, here", "", "12"]
    assert served.complete(PROMPTS, 12, prefills=begun) == reference.complete(PROMPTS, 12, prefills=begun)
    assert served.logprob(PROMPTS, RESPONSES) == pytest.approx(reference.logprob(PROMPTS, RESPONSES), abs=1e-3)


def test_a_likelihood_is_of_the_tokens_of_the_whole_turn(config: TargetConfig, reference: TorchTarget) -> None:
    tokenizer = make_kind("Llama", None)
    for user, answer, found in zip(PROMPTS[:2], RESPONSES, reference.logprob(PROMPTS[:2], RESPONSES[:2]), strict=False):
        prompt = f"<s>plain 02 Jan 2019\n[INST] {user} [/INST]"
        opened, whole = (tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, f"{prompt} {answer}"))
        assert whole[: len(opened)] == opened
        with torch.inference_mode():
            logits = reference._model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
        steps = [logits[i - 1, whole[i]].item() for i in range(len(opened), len(whole))]
        assert found == pytest.approx(sum(steps) / len(steps), abs=1e-5)


def test_options_and_date_change_what_is_read(config: TargetConfig, reference: TorchTarget) -> None:
    for change in ({"template_options": {"tone": "loud"}}, {"template_date": "2020-01-02"}):
        other = TorchTarget(TargetConfig(**{**config.model_dump(), **change}), config.model, threads=1)
        assert other.logprob(PROMPTS, RESPONSES) != reference.logprob(PROMPTS, RESPONSES)
