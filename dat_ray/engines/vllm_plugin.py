"""Makes vLLM know our masked-diffusion models; the entry point of the group `vllm.general_plugins`.

vLLM calls `register` in each of its processes. The models' own module is imported only where one is served.
"""

from __future__ import annotations

from pathlib import Path

from dat_ray.data.stored import model_settings
from dat_ray.errors import InputError

MODULE = "dat_ray.engines.vllm_model"
# A sampler folder's config.json names one of these; each is a class of MODULE made by `masked_diffusion`.
ARCHITECTURES = ("DatMaskedLlama", "DatMaskedQwen2", "DatMaskedQwen3", "DatMaskedQwen3Moe")


def check_architecture(folder: str, field: str = "sampler.model") -> None:
    """Raises InputError where a sampler folder names a class that is not registered: vLLM would say so at its start."""
    stored = model_settings(Path(folder) / "config.json", field).get("architectures") or []
    names = list(map(str, stored)) if isinstance(stored, list) else [str(stored)]
    if not set(names) & set(ARCHITECTURES):
        raise InputError(
            field, folder, f"is a {', '.join(names) or 'model without `architectures`'}, and backend vllm knows "
            f"{', '.join(ARCHITECTURES)}: set sampler.backend to torch, or use one of these"
        )  # fmt: skip


def register() -> None:
    """Registers the architectures that are not there already; safe to call any number of times."""
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for name in ARCHITECTURES:
        if name not in known:
            ModelRegistry.register_model(name, f"{MODULE}:{name}")


def register_here() -> None:
    """Registers the classes themselves, which spares the process that vLLM would start to look at one named by string."""
    from importlib import import_module

    from vllm import ModelRegistry

    module = import_module(MODULE)
    for name in ARCHITECTURES:
        ModelRegistry.register_model(name, getattr(module, name))
