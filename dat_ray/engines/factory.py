"""Builds a role from its part of the recipe. A backend's packages are imported only when it is asked for."""

from __future__ import annotations

from dat_ray.config.schema import JudgeConfig, SamplerConfig, TargetConfig
from dat_ray.engines.base import DiffusionSampler, Judge, TargetModel
from dat_ray.errors import InputError
from dat_ray.models.embedded import resolve_model
from dat_ray.models.samplers import resolve_sampler


def build_sampler(config: SamplerConfig, threads: int) -> DiffusionSampler:
    """The sampler of a recipe.

    Args:
        config: of the sampler; its backend is used as it is, never exchanged for another.
        threads: of the engine on a CPU.

    Raises:
        InputError: the model cannot be found or is no sampler.
        DatError: the engine did not start.
    """
    if config.backend == "torch":
        from dat_ray.engines.torch_sampler import TorchSampler

        return TorchSampler(config, resolve_sampler(config.model), threads)
    # Before anything imports torch, so that OpenMP starts with the right number of threads.
    from dat_ray.engines import vllm_env

    vllm_env.prepare(threads)
    from dat_ray.engines.vllm_sampler import VllmSampler

    return VllmSampler(config, resolve_sampler(config.model), threads)


def build_target(config: TargetConfig, threads: int, adapter: str | None = None, merged_dir: str | None = None) -> TargetModel:
    """The target of a recipe, with a LoRA adapter if one is given.

    Args:
        config: of the target.
        threads: of the engine on a CPU.
        adapter: folder of a PEFT adapter of this model. The torch backend attaches it; for vLLM it is merged into a
            copy of the model, which serves several times faster than an attached one.
        merged_dir: where that copy goes; made once, used again by later calls with the same adapter.

    Raises:
        InputError: the model cannot be found, or the adapter belongs to another.
        DatError: the engine did not start.
    """
    if config.backend == "torch":
        from dat_ray.engines.torch_target import TorchTarget

        return TorchTarget(config, resolve_model(config.model, "target.model"), threads, adapter)
    if config.backend == "endpoint":
        from dat_ray.engines.endpoint import EndpointModel

        return EndpointModel(config)
    from dat_ray.engines import vllm_env

    vllm_env.prepare(threads)
    from dat_ray.engines.vllm_target import VllmTarget

    folder = resolve_model(config.model, "target.model")
    if adapter is not None:
        if merged_dir is None:
            raise InputError("adapter", adapter, "vLLM serves it merged: name a folder for the merged model")
        from dat_ray.models.loading import merge_adapter

        folder = merge_adapter(folder, adapter, merged_dir, config.dtype)
    return VllmTarget(config, folder, threads)


def build_judge(config: JudgeConfig) -> Judge:
    """The judge of a recipe."""
    from dat_ray.engines.refusal_judge import RefusalJudge

    if config.name != RefusalJudge.name:
        raise InputError("judge.name", config.name, "is not there yet: use refusal-rules")
    return RefusalJudge(config.threshold)
