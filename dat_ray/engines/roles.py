"""How each role's engine is made, in the process that will run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dat_ray.config.models import JudgeConfig, SamplerConfig, TargetConfig
from dat_ray.engines.base import DiffusionSampler, Judge, TargetModel


def _build_sampler(config: SamplerConfig, threads: int) -> DiffusionSampler:
    from dat_ray.engines.factory import build_sampler

    return build_sampler(config, threads)


def _build_target(config: TargetConfig, threads: int, adapter: str | None) -> TargetModel:
    from dat_ray.engines.factory import build_target
    from dat_ray.models.remote import local_adapter

    if adapter is None:
        return build_target(config, threads)
    # vLLM serves an adapter merged into a copy of the model, which lies beside it.
    local = local_adapter(adapter).rstrip("/")
    return build_target(config, threads, local, merged_dir=f"{local}-merged")


def _build_judge(config: JudgeConfig) -> Judge:
    from dat_ray.engines.factory import build_judge

    return build_judge(config)


@dataclass(frozen=True)
class Engines:
    """A way to make each role's engine. Picklable.

    The defaults import torch and vLLM only when they are called, so that the driver stays light.

    Attributes:
        sampler: of its part of the recipe, and the threads of an engine on a CPU.
        target: the same, and a LoRA adapter folder or None.
        judge: of its part of the recipe.
    """

    sampler: Callable[[SamplerConfig, int], DiffusionSampler] = _build_sampler
    target: Callable[[TargetConfig, int, str | None], TargetModel] = _build_target
    judge: Callable[[JudgeConfig], Judge] = _build_judge
