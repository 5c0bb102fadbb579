"""What can be known of a recipe's models before an engine starts: every one of them, whatever its role.

Looked at are the configuration, the tokenizer with the chat template, the files of the weights (their headers where they are on
this machine, names and sizes where they are on the hub), an adapter and its base, and a judge's prompt. Weights of a hub model
are not downloaded for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dat_ray.config.models import SamplerConfig, TargetConfig
from dat_ray.config.schema import Recipe
from dat_ray.data.stored import model_settings
from dat_ray.engines.pinning import JUDGES, prompts_of
from dat_ray.engines.vllm_plugin import check_architecture
from dat_ray.errors import InputError, blamed_on
from dat_ray.models.adapter_settings import ADAPTER_WEIGHTS
from dat_ray.models.embedded import resolve_model
from dat_ray.models.hub import hub_folder, hub_listing
from dat_ray.models.samplers import check_sampler_config, resolve_sampler
from dat_ray.models.served import ModelSource, find_source, served_model, tokenizer_folder
from dat_ray.models.weight_files import INDEX, SINGLE, check_layers, check_stored, read_header


@dataclass(frozen=True)
class _Weights:
    """Bytes of the files of a model or adapter, whether they are on this machine, and else what the hub says of their use."""

    size: int
    here: bool
    license: str | None = None


@dataclass(frozen=True)
class EngineFacts:
    """What is known of one engine's model.

    Attributes:
        section: of the recipe, such as `judge.reader`.
        weights: bytes of its files, base and adapter together.
        here: whether they are on this machine.
        detail: in words.
    """

    section: str
    weights: int
    here: bool
    detail: str


def check_engines(recipe: Recipe) -> Iterator[EngineFacts]:
    """Looks at each model of a recipe, and at each judge's prompt.

    Raises:
        InputError: the first thing that an engine would fail on, named by its field.
    """
    for section, (config, _) in recipe.engines().items():
        if config.backend != "endpoint":
            yield check_engine(section, config)
    prompts_of(recipe, *JUDGES)


def check_engine(section: str, config: SamplerConfig | TargetConfig, option: str | None = None) -> EngineFacts:
    """Looks at one model.

    Args:
        section: of the recipe, to name in errors.
        config: not of an endpoint.
        option: of the command line, where the model was named there.

    Raises:
        InputError: what its engine would fail on.
    """
    field = option or f"{section}.model"
    if isinstance(config, SamplerConfig):
        return _check_sampler(section, field, config)
    source = find_source(config.model, field, config.revision, weights=False)
    whole = source.base or source
    weights = [_weights(source, field)]
    if source.base is not None:
        weights.append(_base_weights(source, source.base, field))
    if check_layers(str(whole.folder), field).get("text_config") and config.backend == "vllm":
        _can_serve_text_part(field, config.model)
    with blamed_on(section):
        # Imported late: tokenizers are not needed where every model is a sampler or served elsewhere.
        from dat_ray.engines.target_text import TargetText

        TargetText(config, tokenizer_folder(config.model, field, config.revision))
    architecture = _architecture(whole, field)
    if source.base is not None and all(one.here for one in weights):
        served_model(config.model, field, config.revision)  # merged here, once, and not by each engine
    return _facts(section, source, weights, architecture)


def _check_sampler(section: str, field: str, config: SamplerConfig) -> EngineFacts:
    found = resolve_model(config.model, field)
    local = Path(found).is_dir()
    # With the index: without it weights in shards would look like none.
    folder = Path(found) if local else hub_folder(found, config.revision, field, ("config.json", INDEX))
    family = check_sampler_config(str(folder), config.model, field)
    if not local:
        source = ModelSource(config.model, folder, folder.name)
        return _facts(section, source, [_weights(source, field)], family.name if family is not None else "a sampler")
    # What has to be converted is converted here, once.
    ready = resolve_sampler(config.model, field, config.revision)
    size = check_stored(ready, field)
    if config.backend == "vllm":
        check_architecture(ready, field)
    with blamed_on(section, "sampler"):
        from dat_ray.engines.sampler_setup import SamplerSetup

        SamplerSetup.read(config, ready)
    source = ModelSource(config.model, Path(ready), None)
    return _facts(section, source, [_Weights(size, True)], _architecture(source, field))


def _weights(source: ModelSource, field: str) -> _Weights:
    """Looks at the files of a model's or an adapter's weights."""
    adapter = source.base is not None
    local = source.commit is None
    if local or (source.folder / (ADAPTER_WEIGHTS if adapter else SINGLE)).exists() or _all_shards(source.folder):
        try:
            if not adapter:
                return _Weights(check_stored(str(source.folder), field), True)
            path = source.folder / ADAPTER_WEIGHTS
            if not path.is_file():
                raise InputError(field, source.spec, f"has no {ADAPTER_WEIGHTS}: give a LoRA adapter in safetensors format")
            read_header(path, field)
            return _Weights(path.stat().st_size, True)
        except InputError as error:
            raise InputError(field, source.spec, error.remedy) from error
    assert source.commit is not None
    files, license_words = hub_listing(source.spec, source.commit, field)
    wanted = [ADAPTER_WEIGHTS] if adapter else _shards_of(source, field, files)
    missing = next((name for name in wanted if not files.get(name)), None)
    if missing is not None:
        others = sorted(name for name in files if name.endswith((".bin", ".pt", ".pth", ".gguf")))
        remedy = (
            f"has {others[0]} and no safetensors weights: convert it" if others else f"lacks {missing} on the hub: use another"
        )
        raise InputError(field, source.spec, remedy)
    size = sum(files[name] for name in wanted)
    stated = _stated_bytes(source.folder / INDEX, field)
    if not adapter and len(wanted) > 1 and stated is not None and size < stated:
        remedy = f"has {size} bytes of shards, and its {INDEX} speaks of {stated}: use another revision, or another model"
        raise InputError(field, source.spec, remedy)
    return _Weights(size, False, license_words)


def _base_weights(adapter: ModelSource, base: ModelSource, field: str) -> _Weights:
    try:
        return _weights(base, field)
    except InputError as error:
        raise InputError(field, adapter.spec, f"is an adapter of {base.spec}: that {error.remedy}") from error


def _all_shards(folder: Path) -> bool:
    index = folder / INDEX
    return index.is_file() and all((folder / name).exists() for name in _named(index, "model"))


def _shards_of(source: ModelSource, field: str, files: Mapping[str, int]) -> list[str]:
    """Weights by the rule of transformers: the one file, or else the shards of the index."""
    return [SINGLE] if SINGLE in files or not (source.folder / INDEX).is_file() else _named(source.folder / INDEX, field)


def _named(index: Path, field: str) -> list[str]:
    names = model_settings(index, field).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(field, str(index), "is no index of files: download it again")
    return sorted(set(map(str, names.values())))


def _stated_bytes(index: Path, field: str) -> int | None:
    if not index.is_file():
        return None
    about = model_settings(index, field).get("metadata")
    stated = about.get("total_size") if isinstance(about, dict) else None
    return stated if isinstance(stated, int) else None


def _architecture(source: ModelSource, field: str) -> str:
    settings: dict[str, Any] = model_settings(source.folder / "config.json", field)
    names = settings.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else str(settings.get("model_type", "a model"))


def _facts(section: str, source: ModelSource, weights: Sequence[_Weights], architecture: str) -> EngineFacts:
    size, here = sum(one.size for one in weights), all(one.here for one in weights)
    where = "" if here else ", to be downloaded"
    commit = f" at {source.commit[:12]}" if source.commit else ""
    base = f", an adapter of {source.base.spec}" if source.base is not None else ""
    licenses = "".join(f", {one.license}" for one in weights if one.license)
    detail = f"{source.spec}{commit}{base}: {size / 2**30:.2f} GiB of safetensors{where}, {architecture}{licenses}"
    return EngineFacts(section, size, here, detail)


def _can_serve_text_part(field: str, model: str) -> None:
    """vLLM's classes of models that see import torchvision, though nothing of it is used for text."""
    if find_spec("vllm") is not None and find_spec("torchvision") is None:
        remedy = (
            "reads images too, and vLLM imports torchvision for it, which is not installed: install it, or set backend to torch"
        )
        raise InputError(field, model, remedy)
