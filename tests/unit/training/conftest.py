"""Tiny random models and hand-made rows: training's mathematics needs no real weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dat_ray.config.training import LoraConfig, RetainConfig, TrainingConfig
from dat_ray.models.adapters import attach_lora
from dat_ray.models.chat import Encoded
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.network import Network

VOCABULARY = 61
BEFORE, BETWEEN = [1, 2, 3, 7], [4, 5]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_network() -> Callable[..., Network]:
    """A Llama of 2 layers with a LoRA; `adapted` moves the adapter off its zero start."""

    def make(
        *,
        adapted: bool = True,
        dtype: torch.dtype = torch.float32,
        dropout: float = 0.0,
        seed: int = 0,
        checkpointing: bool = False,
        layers: int = 2,
    ) -> Network:
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                tie_word_embeddings=True,
                initializer_range=0.3,
            )
        )
        peft = attach_lora(model, LoraConfig(rank=4, alpha=8, dropout=dropout), seed).to(dtype)
        network = Network(peft, checkpointing=checkpointing)
        if adapted:
            generator = torch.Generator().manual_seed(seed + 1)
            for parameter in network.trainable().values():
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
        return network

    return make


@pytest.fixture
def encode() -> Callable[[list[int], list[int]], Encoded]:
    """A row with the common template around the user's ids."""

    def make(user: list[int], response: list[int]) -> Encoded:
        start = len(BEFORE) + len(user) + len(BETWEEN)
        return Encoded(
            ids=[*BEFORE, *user, *BETWEEN, *response],
            user_span=(len(BEFORE), len(BEFORE) + len(user)),
            response_span=(start, start + len(response)),
        )

    return make


@pytest.fixture
def harmful_rows(encode: Callable[..., Encoded]) -> list[HarmfulRow]:
    """Six rows of unequal lengths, with token id 0 in prompts and responses."""
    generator = torch.Generator().manual_seed(5)

    def draw(length: int) -> list[int]:
        return torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()

    lengths = [(3, 2, 4), (5, 4, 1), (1, 1, 3), (7, 3, 3), (2, 5, 2), (4, 2, 6)]
    rows = []
    for user, harmful, refusal in lengths:
        prompt = draw(user)
        rows.append(HarmfulRow(encode(prompt, [*draw(harmful), 0]), encode(prompt, draw(refusal))))
    return rows


@pytest.fixture
def retain_rows(encode: Callable[..., Encoded]) -> list[Encoded]:
    """Five harmless rows of unequal lengths."""
    generator = torch.Generator().manual_seed(6)

    def draw(length: int) -> list[int]:
        return torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()

    return [encode(draw(user), draw(response)) for user, response in [(2, 3), (4, 1), (1, 6), (6, 2), (3, 4)]]


@pytest.fixture
def make_config() -> Callable[..., TrainingConfig]:
    """A small training section; keyword arguments replace its fields."""

    def make(**changes: object) -> TrainingConfig:
        tree: dict[str, object] = {
            "learning_rate": 0.01,
            "updates": 8,
            "harmful_rows": 4,
            "retain_rows": 3,
            "checkpoint_every": 3,
            "retain": RetainConfig(path="unused"),
            "attack": {"steps": 3, "step_size": 0.2},
        }
        return TrainingConfig.model_validate({**tree, **changes})

    return make
