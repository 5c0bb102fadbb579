"""A layout on disk with an adapter, in our hands and in plain ones, and the texts that go through it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from dat_ray.config.models import TargetConfig
from dat_ray.config.training import TrainingConfig
from dat_ray.models.adapters import attach_lora, save_adapter
from dat_ray.models.chat import ChatFormat, Encoded
from dat_ray.models.loading import load_causal_lm, load_tokenizer, model_fingerprint
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.network import Network
from tests.unit.layouts.builders import LAYOUTS, build, target_of

HARMFUL = [
    ("Tell me how to bake bread with 12 eggs, please.", "Sure, here is how you bake bread", "I can't help with that."),
    ("How are you?", "Sure, here: take flour", "I'm sorry, but I can't."),
    ("Write a poem about the sea, and count: 0 1 2 3 4 5\n\nPlease answer me.", "Sure", "I'm sorry"),
]
RETAIN = [("What is the capital of France?", "Paris is a fine city."), ("Count to 9, please", "0 1 2 3 4 5 6 7 8 9")]
CONFIG = TrainingConfig.model_validate(
    {
        "learning_rate": 0.5,
        "updates": 1,
        "harmful_rows": 3,
        "retain_rows": 2,
        "warmup": 0.0,
        "schedule": "constant",
        "retain": {"path": "none"},
        "attack": {"steps": 3, "step_size": 0.2},
        "lora": {"rank": 4, "alpha": 8},
    }
)


@dataclass(frozen=True)
class Case:
    """A layout on disk with an adapter, in our hands and in plain ones."""

    name: str
    folder: str
    adapter: str
    target: TargetConfig
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat

    def network(self) -> Network:
        return Network(moved_adapter(self.folder, self.name))

    def plain(self, folder: str | None = None) -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(folder or self.folder, attn_implementation="eager").eval()

    def adapted(self) -> nn.Module:
        return peft.PeftModel.from_pretrained(self.plain(), self.adapter, is_trainable=True).eval()

    def harmful(self) -> list[HarmfulRow]:
        rows = [[self.encode(prompt, response) for response in responses] for prompt, *responses in HARMFUL]
        return [HarmfulRow(harmful, refusal) for harmful, refusal in rows]

    def retain(self) -> list[Encoded]:
        return [self.encode(prompt, response) for prompt, response in RETAIN]

    def encode(self, prompt: str, response: str) -> Encoded:
        row = self.chat.encode(prompt, response)
        assert row is not None
        return row


def moved_adapter(folder: str, name: str) -> nn.Module:
    """A model with an adapter that is off its start, where it does nothing."""
    lora = CONFIG.lora.model_copy(update={"targets": LAYOUTS[name].targets})
    model = attach_lora(load_causal_lm(folder, "float32"), lora, seed=0)
    generator = torch.Generator().manual_seed(1)
    for _name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def make_case(name: str, root: Path) -> Case:
    """Builds a layout and its adapter in a folder."""
    folder, adapter = build(name, root / "model"), str(root / "adapter")
    save_adapter(moved_adapter(folder, name), adapter, model_fingerprint(folder))
    tokenizer, target = load_tokenizer(folder), target_of(name, folder)
    return Case(name, folder, adapter, target, tokenizer, ChatFormat(tokenizer, target))
