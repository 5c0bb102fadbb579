"""The sampler served by vLLM inside this process: a call of the engine takes several denoising steps of a batch."""

from __future__ import annotations

from collections.abc import Sequence

from dat_ray.config.models import SamplerConfig
from dat_ray.diffusion.canvas_rows import CanvasRow
from dat_ray.diffusion.sampler import infill_canvases
from dat_ray.engines import vllm_env, vllm_plugin
from dat_ray.engines.base import InfillRequest, InfillResult
from dat_ray.engines.sampler_setup import SamplerSetup

# A bidirectional model keeps no keys and values, but vLLM's CPU worker wants a size.
NO_CACHE_GIB = 1 / 64


class VllmSampler:
    """In-paints prompts with one vLLM engine: ragged batches without padding, the law on the device.

    Args:
        config: of the sampler.
        folder: local sampler folder.
        threads: OpenMP threads on a CPU.

    Raises:
        InputError: no sampler folder, or one for another layout.
        DatError: the engine did not start.
    """

    def __init__(self, config: SamplerConfig, folder: str, threads: int) -> None:
        vllm_env.prepare(threads)
        vllm_plugin.check_architecture(folder)
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
            **vllm_env.engine_options(config),
        )

    def infill(self, requests: Sequence[InfillRequest]) -> list[InfillResult]:
        """See `DiffusionSampler`."""
        setup = self._setup
        done = infill_canvases(
            setup.canvases(requests),
            [request.seed for request in requests],
            setup.spec,
            setup.law,
            self._advance,
            self._batch_size,
            setup.steps_per_call,
        )
        return setup.results(requests, done)

    def _advance(self, rows: Sequence[CanvasRow], steps: int) -> None:
        """Takes steps with rows in one call of the engine, each row a request."""
        from dat_ray.engines.vllm_model import TASK, requests_of, store_outcome

        prompts, params = requests_of(rows, self._setup.law, self._setup.spec.mask_token_id, steps)
        outputs = self._llm.encode(prompts, params, pooling_task=TASK, use_tqdm=False)
        for row, output in zip(rows, outputs, strict=True):
            store_outcome(row, output.outputs.data)
