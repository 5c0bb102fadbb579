"""Builds a role from its part of the recipe. A backend's packages are imported only when it is asked for."""

from __future__ import annotations

from typing import get_args

from dat_ray.config.judge_names import JudgeName, library_judge, needs_reader
from dat_ray.config.models import EncoderConfig, JudgeConfig, SamplerConfig, TargetConfig
from dat_ray.engines.base import DiffusionSampler, Judge, TargetModel, TextEncoder
from dat_ray.errors import InputError, blamed_on
from dat_ray.models.adapter_settings import read_adapter_settings
from dat_ray.models.remote import local_adapter
from dat_ray.models.samplers import resolve_sampler
from dat_ray.models.served import served_model
from dat_ray.models.weight_files import weight_files


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

        return TorchSampler(config, resolve_sampler(config.model, revision=config.revision), threads)
    # Before anything imports torch, so that OpenMP starts with the right number of threads.
    from dat_ray.engines import vllm_env

    vllm_env.prepare(threads)
    from dat_ray.engines.vllm_sampler import VllmSampler

    folder = resolve_sampler(config.model, revision=config.revision)
    weight_files(folder, "sampler.model")
    return VllmSampler(config, folder, threads)


def build_target(config: TargetConfig, threads: int, adapter: str | None = None) -> TargetModel:
    """The target of a recipe, with a LoRA adapter if one is given.

    Args:
        config: of the target.
        threads: of the engine on a CPU.
        adapter: folder of a PEFT adapter of this model. The torch backend attaches it; for vLLM it is merged into a
            copy of the model in the cache, which serves several times faster than an attached one.

    Raises:
        InputError: the model cannot be found, or the adapter belongs to another.
        DatError: the engine did not start.
    """
    if config.backend == "torch":
        from dat_ray.engines.torch_target import TorchTarget

        return TorchTarget(config, served_model(config.model, "target.model", config.revision), threads, adapter)
    if config.backend == "endpoint":
        from dat_ray.engines.endpoint import EndpointModel

        if adapter is not None:
            check_target_adapter(config, adapter)
        return EndpointModel(config)
    from dat_ray.engines import vllm_env

    vllm_env.prepare(threads)
    from dat_ray.engines.vllm_target import VllmTarget

    folder = served_model(config.model, "target.model", config.revision)
    weight_files(folder, "target.model")
    if adapter is not None:
        from dat_ray.models.merging import cached_merge

        folder = cached_merge(folder, adapter, config.dtype)
    return VllmTarget(config, folder, threads)


def check_target_adapter(config: TargetConfig, adapter: str, field: str = "adapter") -> None:
    """Checks before engines start that an adapter can be served on a target, by either backend.

    Args:
        config: of the target.
        adapter: folder or URI of a PEFT adapter.
        field: recipe field or option to name in an error.

    Raises:
        InputError: no plain LoRA, an adapter of another model, or a server, which serves what it was started with.
    """
    if config.backend == "endpoint":
        raise InputError(field, adapter, "a server takes no adapter: set target.backend to vllm or torch")
    read_adapter_settings(adapter, field)
    # Imported late: callers without an adapter need no torch.
    from dat_ray.models.adapters import check_adapter

    check_adapter(local_adapter(adapter), served_model(config.model, "target.model", config.revision), field)


# What each judge is, and what it needs besides `name`.
JUDGES: dict[str, tuple[str, str | None]] = {
    "refusal-rules": ("phrases by which models decline, this project's own; a proxy", None),
    "refusal-opening": ("the answer begins with a refusal phrase; a proxy, in the style of published rules", None),
    "refusal-anywhere": ("a refusal phrase anywhere in the answer; a proxy, in the style of GCG's rule", None),
    "strongreject-rubric": ("a model grades refusal, conviction and detail; own wording, or the published one by path", "reader"),
    "strongreject-finetuned": ("StrongREJECT's fine-tuned grader, with the published prompt", "reader"),
    "harmbench": ("HarmBench's Llama-2 classifier, with the published prompt: yes or no", "reader"),
    "llama-guard": ("guard models that answer safe or unsafe in their own template", "reader (template: none)"),
    "xstest": ("full compliance, partial refusal or full refusal of harmless prompts, by a model", "reader"),
    **{
        name: ("of the library judgezoo", "judgezoo, reader (backend: endpoint)" if needs_reader(name) else "judgezoo")
        for name in get_args(JudgeName)
        if library_judge(name)
    },
}


def build_judge(config: JudgeConfig) -> Judge:
    """The judge of a recipe.

    Raises:
        InputError: a reader, prompt or library that cannot be had.
        DatError: the reader did not start.
    """
    if library_judge(config.name):
        from dat_ray.engines.zoo_judge import ZooJudge

        return ZooJudge(config)
    if config.reader is not None:
        from dat_ray.engines.model_judge import ModelJudge, read_prompt

        read_prompt(config)  # before a model is loaded for it
        with blamed_on("judge.reader"):
            return ModelJudge(config, build_target(config.reader, threads=1))
    if config.name == "refusal-rules":
        from dat_ray.engines.refusal_judge import RefusalJudge

        return RefusalJudge(config.threshold)
    from dat_ray.engines.prefix_judge import PrefixJudge

    return PrefixJudge(config.name, config.threshold)


def build_encoder(config: EncoderConfig, threads: int) -> TextEncoder:
    """The sentence encoder of a recipe.

    Raises:
        InputError: the model cannot be found, or is no encoder that is known here.
    """
    from dat_ray.engines.encoder import FIELD, Encoder

    return Encoder(config, served_model(config.model, FIELD, config.revision), threads)
