"""Whether a recipe's models can be had: in a folder, out of a package, in the hub's cache, from the hub, or from a server."""

from __future__ import annotations

import os
from pathlib import Path

from dat_ray.config.models import SamplerConfig, TargetConfig
from dat_ray.engines.checks import check_engine
from dat_ray.errors import DatError, InputError
from dat_ray.models.architectures import check_trainable
from dat_ray.models.embedded import resolve_model
from dat_ray.models.served import find_source
from dat_ray.models.weight_files import weight_files
from dat_ray.ops.needs import Finding

EMBEDDED = "embedded:"


def engine_check(name: str, section: str, config: SamplerConfig | TargetConfig) -> Finding:
    """Whether an engine's model is whole and may be had, or how its server is asked.

    Args:
        name: of the finding.
        section: of the recipe, such as `judge.reader`.
        config: of the engine.
    """
    if isinstance(config, TargetConfig) and config.backend == "endpoint":
        return endpoint_check(name, config)
    try:
        return Finding(name, True, check_engine(section, config).detail)
    except DatError as error:
        return Finding(name, False, str(error), "as the line says")


def target_check(config: TargetConfig) -> Finding:
    """Whether the target is there, and of an architecture that can be trained."""
    name = "target model"
    try:
        source = find_source(config.model, "target.model", config.revision, weights=False)
    except DatError as error:
        return Finding(name, False, str(error), "as the line says")
    try:
        check_trainable(str((source.base or source).folder), "target.model")
    except DatError as error:
        return Finding(name, False, str(error), "set target.model to a model that training supports")
    return engine_check(name, "target", config)


def endpoint_check(name: str, config: TargetConfig) -> Finding:
    """A server: whether its key is set and a proxy usable. It is not asked."""
    assert config.endpoint is not None
    key = config.endpoint.api_key_env
    if key and not os.environ.get(key):
        return Finding(name, False, f"the endpoint's key {key} is not set here", f"set {key} where the engines run")
    from dat_ray.engines.endpoint import EndpointModel

    try:
        EndpointModel(config)
    except InputError as error:
        return Finding(name, False, str(error), "set the variable where the engines run")
    return Finding(
        name, True, f"{config.model} at {config.endpoint.url}, {f'key in {key}' if key else 'without a key'}; not asked"
    )


def weight_bytes(model: str) -> int | None:
    """Bytes of a local model's weights; None where it must be downloaded first, or is no whole model."""
    if not (model.startswith(EMBEDDED) or Path(model).is_dir()):
        return None
    try:
        return sum(path.stat().st_size for path in weight_files(resolve_model(model)))
    except DatError:
        return None  # `engine_check` says why
