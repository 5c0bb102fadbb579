"""The tiny model and tokenizer as fixtures."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.unit.diffusion.tiny import character_tokenizer, tiny_model

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return character_tokenizer()


@pytest.fixture(scope="session")
def model() -> LlamaForCausalLM:
    return tiny_model()
