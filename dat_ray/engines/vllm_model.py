"""Masked diffusion models under vLLM: bidirectional attention, and a pooler that takes denoising steps.

A request is a row of `dat_ray.diffusion.canvas_rows`; its canvas as the first step sees it is the prompt. vLLM runs the model
once, then hands the states to the pooler, which gathers those that predict masked positions, runs the output head on
those alone and applies the law on the device. For further steps it calls the model itself: lengths stay what they are, so
the attention metadata of vLLM's forward pass still hold, and the model is run again inside that pass's context. Only the
outcome of the call travels back to the host. vLLM's own trial passes bring no rows, and end after one pass.

This module leans on vLLM's internals (method.md §6) and is the only one that does; `vllm_env.check_version` guards it.

Shapes: N tokens of all requests in a forward pass, D width, V vocabulary.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm import PoolingParams
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context, override_forward_context
from vllm.model_executor.layers.pooler import Pooler
from vllm.model_executor.models.interfaces_base import attn_type, default_pooling_type
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.v1.pool.metadata import PoolingMetadata

from dat_ray.diffusion.canvas import SamplerSpec
from dat_ray.diffusion.canvas_rows import CanvasRow, Pack, begin_step, chunk_rows, denoise
from dat_ray.diffusion.law import Law
from dat_ray.engines.vllm_moe import BidirectionalQwen3Moe

TASK = "token_classify"
# Ids come back as float32, in which integers are exact below this.
MAX_VOCABULARY = 2**24
# Values in front of a row's tokens and log-confidences.
COUNTERS = 3


def requests_of(rows: Sequence[CanvasRow], law: Law, mask: int, steps: int) -> tuple[list[dict[str, Any]], list[PoolingParams]]:
    """Prompts and parameters of a call that takes `steps` steps with each row.

    Args:
        rows: not changed.
        law: of all rows.
        mask: id of MASK.
        steps: at least 1.
    """
    pack = Pack.of(rows, "cpu")
    seen = begin_step(pack, law, mask).split(pack.lengths.tolist())
    settings = {"law": dataclasses.asdict(law), "steps": steps}
    params = [
        PoolingParams(task=TASK, use_activation=False, extra_kwargs={"row": dataclasses.asdict(row), **settings}) for row in rows
    ]
    return [{"prompt_token_ids": ids.tolist()} for ids in seen], params


def outcome(row: CanvasRow) -> Tensor:
    """What a request is answered with: the row's counters, prompt tokens and their log-confidences, float32."""
    return torch.tensor([row.step, row.deadline, row.nfe, *row.tokens, *row.logprobs], dtype=torch.float32)


def store_outcome(row: CanvasRow, answer: Tensor) -> None:
    """Puts an `outcome` into the row that it is of."""
    lo, hi = row.prompt
    row.step, row.deadline, row.nfe = (int(x) for x in answer[:COUNTERS].tolist())
    row.ids[lo:hi] = answer[COUNTERS : COUNTERS + hi - lo].long().tolist()
    row.logprobs = answer[COUNTERS + hi - lo :].tolist()


class DenoisingPooler(Pooler):
    """Answers each request with the `outcome` of its row.

    Args:
        model: whose pooler this is.
        spec: mask, shift and banned ids of the sampler.
    """

    def __init__(self, model: Any, spec: SamplerSpec) -> None:
        super().__init__()
        # In a list, where torch does not look: a module must not own the one that owns it.
        self._model, self._spec = [model], spec

    def get_supported_tasks(self) -> set[str]:
        """The one task that both of vLLM's model runners accept for a list of tensors."""
        return {TASK}

    def forward(self, hidden_states: Tensor, pooling_metadata: PoolingMetadata) -> list[Tensor]:
        """Takes the steps that the requests ask for.

        Args:
            hidden_states: (N, D), requests one after the other, each whole: encoder-only models are never chunked.
            pooling_metadata: its `pooling_params` carry what `requests_of` put there.
        """
        (model,) = self._model
        call = model.take_call()
        settings = [params.extra_kwargs for params in pooling_metadata.pooling_params]
        if any(each is None for each in settings):
            # vLLM tries the pooler out with requests of its own when it sizes its memory.
            return [hidden_states.new_zeros(0, dtype=torch.float32) for _ in settings]
        law, steps = settings[0]["law"], settings[0]["steps"]
        assert all((each["law"], each["steps"]) == (law, steps) for each in settings), "a call has one law"
        rows = [CanvasRow(**copy.deepcopy(each["row"])) for each in settings]  # a request's parameters stay as they were sent
        pack = Pack.of(rows, hidden_states.device)
        first = [hidden_states]

        def states(ids: Tensor) -> Tensor:
            if not first:
                return call.again(model, ids)
            assert torch.equal(ids, call.ids[: len(ids)]), "vLLM ran the model on other tokens than the rows'"
            return first.pop()

        chunk = chunk_rows(model.config.vocab_size, hidden_states.device)
        denoise(pack, Law(**law), self._spec, states, model.compute_logits, chunk, steps)
        pack.store(rows)
        return [outcome(row) for row in rows]


@dataclasses.dataclass(frozen=True)
class Call:
    """A forward pass that vLLM made, kept until the pooler has taken its steps."""

    ids: Tensor
    positions: Tensor
    context: Any

    def again(self, model: nn.Module, ids: Tensor) -> Tensor:
        """States (N, D) of other ids in the same places; padding behind them stays."""
        full = torch.cat([ids, self.ids[len(ids) :]])
        with override_forward_context(self.context):
            return model.run(full, self.positions)[: len(ids)]


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
            self.pooler = DenoisingPooler(self, SamplerSpec(**config.dat_sampler))
            self._call: Call | None = None

        def forward(
            self, input_ids: Tensor, positions: Tensor, intermediate_tensors: Any = None, inputs_embeds: Any = None, **kwargs: Any
        ) -> Any:
            """vLLM's pass; remembers what the pooler needs to make more of them."""
            self._call = Call(input_ids, positions, get_forward_context())
            return self.run(input_ids, positions)

        def run(self, input_ids: Tensor, positions: Tensor) -> Tensor:
            """Final hidden states (N, D)."""
            return super().forward(input_ids, positions)

        def take_call(self) -> Call:
            """The pass that the states at hand came from; it is handed out once."""
            call, self._call = self._call, None
            assert call is not None, "vLLM pools once a pass"
            return call

    MaskedDiffusion.__name__ = MaskedDiffusion.__qualname__ = name
    MaskedDiffusion.__doc__ = f"A masked diffusion model of the layout of vLLM's {causal.__name__}."
    kind: type[Any] = attn_type("encoder_only")(default_pooling_type(tok_pooling_type="ALL")(MaskedDiffusion))
    return kind


DatMaskedLlama = masked_diffusion("DatMaskedLlama", LlamaForCausalLM)
DatMaskedQwen2 = masked_diffusion("DatMaskedQwen2", Qwen2ForCausalLM)
DatMaskedQwen3 = masked_diffusion("DatMaskedQwen3", Qwen3ForCausalLM)
DatMaskedQwen3Moe = masked_diffusion("DatMaskedQwen3Moe", BidirectionalQwen3Moe)
