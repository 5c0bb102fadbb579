"""The sampler in plain torch: the reference for the vLLM backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dat_ray.config.schema import SamplerConfig
from dat_ray.diffusion.sampler import TorchDenoiser, infill_canvases
from dat_ray.engines.base import InfillRequest, InfillResult
from dat_ray.engines.sampler_setup import SamplerSetup
from dat_ray.models.loading import load_causal_lm


class TorchSampler:
    """In-paints prompts with a transformers model.

    Args:
        config: of the sampler.
        folder: local sampler folder.
        threads: of torch on a CPU.
    """

    def __init__(self, config: SamplerConfig, folder: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._setup = SamplerSetup.read(config, folder)
        self.fingerprint = self._setup.fingerprint
        model: nn.Module = load_causal_lm(folder, config.dtype, "sampler.model")
        self._denoiser = TorchDenoiser(
            model.to("cuda" if torch.cuda.is_available() else "cpu"),
            self._setup.tokenizer,
            self._setup.spec,
            self._setup.law,
            config.batch_size,
            config.max_target_tokens,
        )

    def infill(self, requests: Sequence[InfillRequest]) -> list[InfillResult]:
        """See `DiffusionSampler`."""
        done = infill_canvases(
            self._setup.canvases(requests),
            [request.seed for request in requests],
            self._setup.spec,
            self._setup.law,
            self._denoiser.forward,
            self._denoiser.batch_size,
            self._denoiser.device,
        )
        return self._setup.results(requests, done)
