"""How each role's engine is made, in the process that will run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dat_ray.config.models import EncoderConfig, JudgeConfig, SamplerConfig, TargetConfig
from dat_ray.engines.base import DiffusionSampler, Judge, TargetModel, TextEncoder


def _build_sampler(config: SamplerConfig, threads: int) -> DiffusionSampler:
    from dat_ray.engines.factory import build_sampler

    return build_sampler(config, threads)


def _build_target(config: TargetConfig, threads: int, adapter: str | None) -> TargetModel:
    from dat_ray.engines.factory import build_target
    from dat_ray.models.remote import local_adapter

    return build_target(config, threads, None if adapter is None else local_adapter(adapter))


def _build_judge(config: JudgeConfig) -> Judge:
    from dat_ray.engines.factory import build_judge

    return build_judge(config)


def _build_encoder(config: EncoderConfig, threads: int) -> TextEncoder:
    from dat_ray.engines.factory import build_encoder

    return build_encoder(config, threads)


@dataclass(frozen=True)
class Engines:
    """A way to make each role's engine. Picklable.

    The defaults import torch and vLLM only when they are called, so that the driver stays light.

    Attributes:
        sampler: of its part of the recipe, and the threads of an engine on a CPU.
        target: the same, and a LoRA adapter folder or None.
        judge: of its part of the recipe.
        encoder: of its part of the recipe, and the threads of an engine on a CPU.
    """

    sampler: Callable[[SamplerConfig, int], DiffusionSampler] = _build_sampler
    target: Callable[[TargetConfig, int, str | None], TargetModel] = _build_target
    judge: Callable[[JudgeConfig], Judge] = _build_judge
    encoder: Callable[[EncoderConfig, int], TextEncoder] = _build_encoder
