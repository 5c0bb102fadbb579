"""Masked diffusion models under vLLM: bidirectional attention, and a pooler that takes one denoising step.

The pooler gathers the states that predict masked positions, runs the output head on those alone and applies the law of
`dat_ray.diffusion.law` on the device, so that only the committed tokens travel back to the host. This module leans on
vLLM's internals (method.md §6) and is the only one that does; `vllm_env.check_version` guards it.

Shapes: N tokens of all requests in a forward pass, M masked positions of them, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from vllm import PoolingParams
from vllm.config import VllmConfig
from vllm.model_executor.layers.pooler import Pooler
from vllm.model_executor.models.interfaces_base import attn_type, default_pooling_type
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.v1.pool.metadata import PoolingMetadata

from dat_ray.diffusion.canvas import SamplerSpec
from dat_ray.diffusion.law import Law, denoise_step
from dat_ray.engines.vllm_moe import BidirectionalQwen3Moe

TASK = "token_classify"
# Ids come back as float32, in which integers are exact below this.
MAX_VOCABULARY = 2**24


def step_params(positions: list[int], seed: int, step: int, quota: int, temperature: float, order: str) -> PoolingParams:
    """The settings of one request, which is one denoising step of one row.

    Args:
        positions: masked positions of the canvas, ascending.
        seed: of the row, in [0, 2**63).
        step: from 0.
        quota: tokens to commit.
        temperature, order: of the law.
    """
    settings = {
        "positions": positions,
        "seed": seed,
        "step": step,
        "quota": quota,
        "temperature": temperature,
        "order": order,
    }
    return PoolingParams(task=TASK, use_activation=False, extra_kwargs=settings)


class DenoisingPooler(Pooler):
    """Answers each request with its committed tokens: (quota, 3) float32 of position, token id, log-confidence.

    Args:
        head: maps (m, D) states to (m, V) logits.
        spec: shift and banned ids of the sampler.
    """

    def __init__(self, head: Callable[[Tensor], Tensor], spec: SamplerSpec) -> None:
        super().__init__()
        self._head, self._spec = head, spec

    def get_supported_tasks(self) -> set[str]:
        """The one task that both of vLLM's model runners accept for a list of tensors."""
        return {TASK}

    def forward(self, hidden_states: Tensor, pooling_metadata: PoolingMetadata) -> list[Tensor]:
        """One denoising step of every request of the pass.

        Args:
            hidden_states: (N, D), requests one after the other, each whole: encoder-only models are never chunked.
            pooling_metadata: its `pooling_params` carry what `step_params` put there.
        """
        lengths = pooling_metadata.get_pooling_cursor().num_scheduled_tokens_cpu.tolist()
        settings = [params.extra_kwargs for params in pooling_metadata.pooling_params]
        if any(row is None for row in settings):
            # vLLM tries the pooler out with requests of its own when it sizes its memory.
            return [hidden_states.new_zeros(0, 3, dtype=torch.float32) for _ in settings]
        return self._step(hidden_states, lengths, settings)

    def _step(self, hidden_states: Tensor, lengths: list[int], settings: list[Mapping[str, Any]]) -> list[Tensor]:
        device = hidden_states.device

        def column(name: str) -> Tensor:
            return torch.tensor([row[name] for row in settings], dtype=torch.int64, device=device)

        law = Law(steps=1, temperature=settings[0]["temperature"], order=settings[0]["order"])
        assert all((row["temperature"], row["order"]) == (law.temperature, law.order) for row in settings)
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        rows = torch.tensor([b for b, row in enumerate(settings) for _ in row["positions"]], device=device)
        positions = torch.tensor([position for row in settings for position in row["positions"]], device=device)
        first = torch.tensor(starts[:-1], device=device)
        committed = denoise_step(
            hidden_states[first[rows] + positions - self._spec.shift],
            self._head,
            rows,
            positions,
            column("seed"),
            column("step"),
            column("quota"),
            law,
            self._spec.banned_token_ids,
        )
        table = torch.stack([committed.positions.float(), committed.tokens.float(), committed.logprobs], dim=1)
        # Every row commits exactly its quota: the schedule's sum is its number of masks.
        return list(table.split([row["quota"] for row in settings]))


def masked_diffusion(name: str, causal: type[Any]) -> type[Any]:
    """Turns a `*ForCausalLM` class of vLLM into a pooling model that takes denoising steps.

    The class must switch to encoder-only attention when its config says `is_causal: false`, as vLLM's Llama, Qwen2 and
    Qwen3 do.

    Args:
        name: of the new class, which is the architecture that its folder's config.json names.
        causal: vLLM's class of the layout.
    """

    class MaskedDiffusion(causal):
        is_pooling_model = True

        def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
            config = vllm_config.model_config.hf_config
            if getattr(config, "is_causal", True) or not hasattr(config, "dat_sampler"):
                raise ValueError("config.json of a sampler needs `is_causal: false` and `dat_sampler`")
            if config.vocab_size > MAX_VOCABULARY:
                raise ValueError(f"vocabulary of {config.vocab_size} tokens, at most {MAX_VOCABULARY} can be told apart")
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            # A closure, not the module: the pooler must not own the model that owns it.
            self.pooler = DenoisingPooler(lambda states: self.compute_logits(states), SamplerSpec(**config.dat_sampler))

    MaskedDiffusion.__name__ = MaskedDiffusion.__qualname__ = name
    MaskedDiffusion.__doc__ = f"A masked diffusion model of the layout of vLLM's {causal.__name__}."
    return attn_type("encoder_only")(default_pooling_type(tok_pooling_type="ALL")(MaskedDiffusion))


DatMaskedLlama = masked_diffusion("DatMaskedLlama", LlamaForCausalLM)
DatMaskedQwen2 = masked_diffusion("DatMaskedQwen2", Qwen2ForCausalLM)
DatMaskedQwen3 = masked_diffusion("DatMaskedQwen3", Qwen3ForCausalLM)
DatMaskedQwen3Moe = masked_diffusion("DatMaskedQwen3Moe", BidirectionalQwen3Moe)
