"""The tiny model of `tiny.py`, made once a session."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.unit.models.tiny import make_model, make_tokenizer, save_folder


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def base_folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model as float32 safetensors, with its tokenizer."""
    return save_folder(make_model(len(tokenizer)), tokenizer, tmp_path_factory.mktemp("base") / "tiny")
