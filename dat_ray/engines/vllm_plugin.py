"""Makes vLLM know our masked-diffusion model; the entry point of the group `vllm.general_plugins`.

vLLM calls `register` in each of its processes. The model's own module is imported only where that model is served.
"""

from __future__ import annotations

ARCHITECTURE = "DatMaskedLlama"


def register() -> None:
    """Registers the architecture, unless it is there already; safe to call any number of times."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "dat_ray.engines.vllm_model:DatMaskedLlama")


def register_here() -> None:
    """Registers the class itself, which spares the process that vLLM would start to look at a class named by string."""
    from vllm import ModelRegistry

    from dat_ray.engines.vllm_model import DatMaskedLlama

    ModelRegistry.register_model(ARCHITECTURE, DatMaskedLlama)
