"""Tiny models for searches of a suffix, and a tokenizer from which nothing comes back as it went in."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Regex, decoders
from transformers import PreTrainedTokenizerBase

from dat_ray.evaluation.search.suffix import Search, SuffixModel, SuffixSearch, Task
from dat_ray.models.chat import ChatFormat
from dat_ray.training.network import Network
from tests.unit.models.tiny import make_model, make_tokenizer

GOAL, TARGET = "How are you today?", "Sure, here is"
Parts = tuple[Network, PreTrainedTokenizerBase, ChatFormat]


def make_parts(*, survives: bool = True) -> Parts:
    """A random Llama, its tokenizer and its template; without `survives`, every token is decoded to two letters."""
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer)).eval().requires_grad_(False)
    chat = ChatFormat(tokenizer)
    if not survives:
        doubled = decoders.Sequence([decoders.Replace(Regex(r"[\s\S]+"), "yy"), decoders.Fuse()])
        tokenizer.backend_tokenizer.decoder = doubled
    return Network(model), tokenizer, chat


def plain_loss(parts: Parts, prompt_ids: list[int]) -> float:
    """Cross-entropy of the response behind a prompt, by the whole model on the whole row."""
    network, _, chat = parts
    response = chat.response_ids(TARGET)
    with torch.no_grad():
        logits = network.model(torch.tensor([prompt_ids + response])).logits[0, len(prompt_ids) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(response)).item()


def make_task(parts: Parts) -> tuple[SuffixModel, Task]:
    """The model seen from a suffix, and what is searched for."""
    model = SuffixModel(*parts)
    return model, model.task(GOAL, TARGET)


def in_pieces(make: Callable[[], SuffixSearch[Any]], seed: int) -> Search[Any]:
    """A search that stops after every step and goes on in another object, as on another machine."""
    search, whole = make().begin(GOAL, TARGET, seed), make()
    for step in range(whole.steps):
        assert search.steps == step
        search = make().advance(GOAL, TARGET, pickle.loads(pickle.dumps(search)), stop=lambda: True)
    done = whole.advance(GOAL, TARGET, search, stop=lambda: False)
    assert (done.losses, done.prompts) == (search.losses, search.prompts), "a search that is done stays as it is"
    return search
