"""Which adapters are plain LoRA: an allow-list over every option that PEFT 0.21 stores.

Plain means that PEFT computes W x + scale * B (A x) with the weights W of the base as they are stored. Everything that bends
that rule is refused by name wherever an adapter comes in, whether it would be attached or merged, so that both backends serve
the same model. Imports neither torch nor PEFT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from dat_ray.data.shards import exists, join, read_bytes
from dat_ray.errors import InputError
from dat_ray.json_text import JsonError, parse_object

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Beside it in a folder of ours: which weights the adapter was trained on.
ADAPTER_RECORD = "dat_adapter.json"
_REMEDY = "merge it with PEFT and give the merged folder as the model"

# Options of any value: they choose layers and scales, which are read off PEFT's own layers, or they act on training alone.
_FREE = {
    "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "r", "lora_alpha", "lora_dropout",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "use_rslora", "fan_in_fan_out", "megatron_core", "qalora_group_size",
    # What an initialization was made with, once the stored weights stand for themselves (`init_lora_weights`).
    "eva_config", "loftq_config", "corda_config", "lora_ga_config",
}  # fmt: skip
# The others, where not empty: option -> values without effect on the rule above.
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM",),
    "bias": ("none",),
    # PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change the base when they begin; MiCA is a layer of its own.
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),
}


def read_adapter_settings(folder: str, field: str = "adapter") -> dict[str, Any]:
    """Reads adapter_config.json of a folder or URI, and checks that it is plain LoRA.

    Args:
        folder: of the adapter.
        field: recipe field or option to name in an error.

    Raises:
        InputError: none there, or another kind of adapter, by the name of its first option that is not plain.
    """
    path = join(folder, ADAPTER_CONFIG)
    if not exists(path):
        raise InputError(field, folder, f"has no {ADAPTER_CONFIG}: give a folder with a LoRA adapter in safetensors format")
    try:
        settings = parse_object(read_bytes(path))
    except JsonError as error:
        remedy = f"its {ADAPTER_CONFIG} {error}: save the adapter again with save_pretrained"
        raise InputError(field, folder, remedy) from None
    check_adapter_settings(settings, folder, field)
    return settings


def check_adapter_settings(settings: Mapping[str, Any], folder: str | PurePath, field: str = "adapter") -> None:
    """Raises InputError where the content of an adapter_config.json is not plain LoRA."""
    if settings.get("peft_type") != "LORA":
        raise InputError(field, str(folder), f"is of type {settings.get('peft_type')}, only plain LoRA is known here: {_REMEDY}")
    for option, value in settings.items():
        # An option that is empty asks for nothing, also one that a later PEFT has added.
        if not value or option in _FREE or value in _ALLOWED.get(option, ()):
            continue
        raise InputError(
            field, str(folder), f"has {option} = {json.dumps(value)[:60]}, only plain LoRA is known here: {_remedy(option)}"
        )


def _remedy(option: str) -> str:
    if option == "init_lora_weights":
        return "save it with PEFT's `path_initial_model_for_weight_conversion`, or merge it with PEFT"
    return _REMEDY
