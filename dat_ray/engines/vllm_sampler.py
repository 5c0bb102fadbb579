"""The sampler served by vLLM inside this process: every denoising step of a batch is one call of the engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dat_ray.config.schema import SamplerConfig
from dat_ray.diffusion.law import Committed
from dat_ray.diffusion.sampler import StepBatch, infill_canvases
from dat_ray.engines import vllm_env, vllm_plugin
from dat_ray.engines.base import InfillRequest, InfillResult
from dat_ray.engines.sampler_setup import SamplerSetup

# A bidirectional model keeps no keys and values, but vLLM's CPU worker wants a size.
NO_CACHE_GIB = 1 / 64


class VllmSampler:
    """In-paints prompts with one vLLM engine: ragged batches without padding, the law on the device.

    Args:
        config: of the sampler.
        folder: local sampler folder, Llama layout.
        threads: OpenMP threads on a CPU.

    Raises:
        InputError: no sampler folder, or one for another layout.
        DatError: the engine did not start.
    """

    def __init__(self, config: SamplerConfig, folder: str, threads: int) -> None:
        vllm_env.prepare(threads)
        self._setup = SamplerSetup.read(config, folder)
        self.fingerprint = self._setup.fingerprint
        self._batch_size = config.batch_size
        vllm_plugin.register_here()
        longest = self._setup.longest_canvas()
        self._llm = vllm_env.start_engine(
            folder,
            kv_cache_gib=NO_CACHE_GIB,
            runner="pooling",
            dtype=config.dtype,
            # A forward pass is long enough that launching its kernels one by one costs nothing.
            enforce_eager=True,
            max_model_len=longest,
            # A bidirectional row runs whole or not at all.
            max_num_batched_tokens=max(config.max_batched_tokens, longest),
            max_num_seqs=config.batch_size,
        )

    def infill(self, requests: Sequence[InfillRequest]) -> list[InfillResult]:
        """See `DiffusionSampler`."""
        done = infill_canvases(
            self._setup.canvases(requests),
            [request.seed for request in requests],
            self._setup.spec,
            self._setup.law,
            self._forward,
            self._batch_size,
        )
        return self._setup.results(requests, done)

    def _forward(self, batch: StepBatch) -> Committed:
        """One denoising step of all rows, each a request of its own."""
        from dat_ray.engines.vllm_model import TASK, step_params

        law = self._setup.law
        prompts, params = [], []
        for b in range(len(batch.ids)):
            prompts.append({"prompt_token_ids": batch.ids[b, batch.valid[b]].tolist()})
            params.append(
                step_params(
                    batch.positions[batch.rows == b].tolist(),
                    int(batch.seeds[b]),
                    int(batch.steps[b]),
                    int(batch.quotas[b]),
                    law.temperature,
                    law.order,
                )
            )
        outputs = self._llm.encode(prompts, params, pooling_task=TASK, use_tqdm=False)
        tables = [output.outputs.data for output in outputs]
        rows = torch.arange(len(tables)).repeat_interleave(torch.tensor([len(table) for table in tables]))
        table = torch.cat(tables)
        return Committed(rows, table[:, 0].long(), table[:, 1].long(), table[:, 2])
