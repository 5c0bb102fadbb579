"""Fixtures of the tests that run real models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny random chat model with SmolLM2's tokenizer, in float32.

    Heads of 32 are the smallest that vLLM's CPU attention takes.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from dat_ray.models.embedded import resolve_model
    from dat_ray.models.loading import load_tokenizer

    folder = str(tmp_path_factory.mktemp("models") / "tiny")
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    load_tokenizer(resolve_model("embedded:smollm2-135m-instruct")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sampler(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of the tiny model, marked as a sampler with the chat layout; its mask is token 16."""
    from dat_ray.diffusion.canvas import SamplerSpec, banned_ids
    from dat_ray.models.loading import load_tokenizer

    path = shutil.copytree(tiny_llama, tmp_path_factory.mktemp("samplers") / "tiny")
    tokenizer = load_tokenizer(str(path))

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False).input_ids)

    before, between = ids("<|im_start|>user\n"), ids("<|im_end|>\n<|im_start|>assistant\n")
    SamplerSpec(16, 1, banned_ids(tokenizer, 16, 49152), "chat", before, between).write(path)
    return str(path)


@pytest.fixture(scope="module")
def vllm_process() -> Iterator[None]:
    """Lets vLLM run inside the test process for one module, and takes back what it leaves there."""
    import torch

    from dat_ray.engines import vllm_env

    set_num_threads = torch.set_num_threads
    vllm_env.prepare(threads=1)
    yield
    from vllm.distributed import cleanup_dist_env_and_memory

    # The process group, and a function that vLLM replaces with one that does nothing.
    cleanup_dist_env_and_memory()
    torch.set_num_threads = set_num_threads
