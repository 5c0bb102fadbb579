"""The sampler in plain torch: the reference for the vLLM backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dat_ray.config.models import SamplerConfig
from dat_ray.diffusion.backbone import base_model, hidden_states, output_head, pad_rows
from dat_ray.diffusion.canvas import build_canvas
from dat_ray.diffusion.likelihood import MaskedModel, log_likelihood, written
from dat_ray.diffusion.sampler import TorchDenoiser
from dat_ray.engines.base import InfillRequest, InfillResult, PromptLikelihood
from dat_ray.engines.sampler_setup import SamplerSetup
from dat_ray.errors import InputError
from dat_ray.models.fp8 import MULTIPLE, lacks_products, quantize_layers
from dat_ray.models.loading import load_causal_lm

# Of a model's layers, by parameters: with fewer in 8 bits there is little to gain.
LEAST_SHARE = 0.5


class TorchSampler:
    """In-paints prompts with a transformers model.

    Args:
        config: of the sampler.
        folder: local sampler folder.
        threads: of torch on a CPU.

    Raises:
        InputError: compiled layers are asked for where PyTorch sees no GPU, or 8-bit ones where it sees none that has them, or
            of a model that has few such layers.
    """

    def __init__(self, config: SamplerConfig, folder: str, threads: int) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if config.compile and device.type == "cpu":
            raise InputError("sampler.compile", True, "PyTorch sees no GPU here, and a CPU gains nothing: set it to false")
        if config.quantization and (device.type == "cpu" or lacks_products(device)):
            missing = "no GPU" if device.type == "cpu" else f"a GPU without 8-bit products, {torch.cuda.get_device_name(device)},"
            remedy = f"PyTorch sees {missing} here: leave it out, or give the sampler one of NVIDIA's Ada, Hopper or newer"
            raise InputError("sampler.quantization", config.quantization, remedy)
        torch.set_num_threads(threads)
        self._setup = SamplerSetup.read(config, folder)
        self.fingerprint = self._setup.fingerprint
        model: nn.Module = load_causal_lm(folder, config.dtype, "sampler.model")
        if config.quantization:
            share = quantize_layers(base_model(model).base_model.layers, device).share
            if share < LEAST_SHARE:
                kinds = f"linear ones of sizes that are multiples of {MULTIPLE} and no experts"
                problem = f"backend torch has {share:.0%} of this model's layers in 8 bits, {kinds}"
                remedy = f"{problem}: set backend to vllm, or leave it out"
                raise InputError("sampler.quantization", config.quantization, remedy)
        self._denoiser = TorchDenoiser(
            model.to(device),
            self._setup.spec,
            self._setup.law,
            config.batch_size,
            config.steps_per_call,
            compiled=config.compile,
        )

    def infill(self, requests: Sequence[InfillRequest]) -> list[InfillResult]:
        """See `DiffusionSampler`."""
        done = self._denoiser.fill(self._setup.canvases(requests), [request.seed for request in requests])
        return self._setup.results(requests, done)

    def log_likelihood(
        self, targets: Sequence[str], prompts: Sequence[Sequence[int]], seeds: Sequence[int], samples: int
    ) -> list[PromptLikelihood]:
        """See `DiffusionSampler`."""
        setup, denoiser = self._setup, self._denoiser
        canvases = [
            written(build_canvas(setup.tokenizer, setup.spec, target, len(ids), setup.max_target_tokens), ids)
            for target, ids in zip(targets, prompts, strict=True)
        ]
        spec, head = setup.spec, output_head(denoiser.model)
        model = MaskedModel(spec.mask_token_id, spec.shift, self._states, head, denoiser.batch_size, denoiser.chunk)
        estimates = log_likelihood(model, canvases, seeds, samples)
        return [PromptLikelihood(estimate.value, estimate.error) for estimate in estimates]

    def _states(self, rows: Sequence[Sequence[int]]) -> Tensor:
        denoiser = self._denoiser
        ids, valid = pad_rows([list(row) for row in rows], self._setup.spec.mask_token_id, denoiser.device)
        return hidden_states(denoiser.model, ids, valid)[valid]
