"""LoRA adapters: attached afresh, stored, loaded, and checked against the base model they belong to.

An adapter folder holds what PEFT writes and `dat_adapter.json`, which names the base model by `model_fingerprint`. What may
come in is plain LoRA (`adapter_settings`) on layers whose rule is known (`lora_layers`); `merging` adds it to the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from dat_ray.config.training import LoraConfig
from dat_ray.data.stored import model_settings
from dat_ray.errors import InputError
from dat_ray.models.adapter_settings import ADAPTER_CONFIG, ADAPTER_RECORD, ADAPTER_WEIGHTS, read_adapter_settings
from dat_ray.models.folders import replace_folder
from dat_ray.models.hub import hub_id_of
from dat_ray.models.loading import first_line, load_model_config, model_fingerprint
from dat_ray.models.lora_layers import LoraLayer, lora_layers
from dat_ray.models.weight_files import read_header, refuse_quantized, stored_tensors

TARGETS_FIELD = "training.lora.targets"


def check_lora_targets(base: str, config: LoraConfig, field: str = "target.model", *, weights: bool = True) -> None:
    """Checks before anything is made that a LoRA can be trained on a model and added to its weights afterwards.

    Args:
        base: folder or hub id; of the latter the configuration alone is looked at, so that nothing is downloaded for it.
        config: which layers.
        field: recipe field of the model.
        weights: whether the folder holds them; else its configuration alone is looked at.

    Raises:
        InputError: a quantized model, or layers that are not there, not stored, or not linear.
    """
    layers = _base_layers(base, _peft_config(config), field, (TARGETS_FIELD, config.targets), weights=weights)
    if weights:
        refuse_unstored(base, layers, TARGETS_FIELD, config.targets)


def attach_lora(model: PreTrainedModel, config: LoraConfig, seed: int) -> peft.PeftModel:
    """Puts a fresh LoRA adapter on linear layers (`config.targets`, never the head), as the only trainable parameters.

    The adapter is in float32 whatever the model's dtype, because updates of 1e-4 vanish in bfloat16. Its start
    depends on `seed` alone, and the global random state is left as it was: A is Kaiming-uniform, B zero.

    Args:
        model: is changed in place: its linear layers are wrapped.
        config: rank, alpha, dropout and targets.
        seed: of A.

    Raises:
        InputError: targets that are no linear layers of the model.
    """
    lora = _peft_config(config)
    lora_layers(model.config, lora, TARGETS_FIELD, config.targets)
    with torch.random.fork_rng():
        adapted = peft.get_peft_model(model, lora)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if not parameter.requires_grad:
            continue
        start = torch.zeros(parameter.shape)
        if ".lora_A." in name:
            torch.nn.init.kaiming_uniform_(start, a=5**0.5, generator=generator)
        parameter.data = start.to(parameter.device)
    return adapted


def _peft_config(config: LoraConfig) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.targets if isinstance(config.targets, str) else list(config.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )


def save_adapter(model: peft.PeftModel, folder: str, base_fingerprint: str) -> None:
    """Writes the LoRA adapter of `model`, replacing the folder as a whole.

    Args:
        model: not wrapped by DDP or FSDP.
        folder: local folder of the adapter.
        base_fingerprint: `model_fingerprint` of the model that the adapter was trained on.
    """
    config = model.peft_config["default"]
    weights = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    with replace_folder(Path(folder).absolute()) as scratch:
        save_file({name: w.detach().cpu().contiguous() for name, w in weights.items()}, scratch / ADAPTER_WEIGHTS)
        config.save_pretrained(str(scratch))
        # PEFT writes a set in arbitrary order and the base model's local path; neither belongs in a stored adapter.
        stored = model_settings(scratch / ADAPTER_CONFIG)
        stored.update(base_model_name_or_path=None, inference_mode=True, target_modules=sorted(stored["target_modules"]))
        write_json(scratch / ADAPTER_CONFIG, stored)
        write_json(scratch / ADAPTER_RECORD, {"format_version": 1, "base_fingerprint": base_fingerprint})


def load_adapter(model: PreTrainedModel, folder: str, *, trainable: bool = False) -> peft.PeftModel:
    """Attaches a stored adapter to the model it was trained on.

    Args:
        model: from `load_causal_lm`; changed in place.
        folder: written by `save_adapter`.
        trainable: whether its parameters (float32) take gradients.

    Raises:
        InputError: an incomplete folder, or an adapter of another base model.
    """
    assert model.name_or_path, "only a model that was loaded from a folder or hub has a fingerprint"
    check_adapter(folder, model.name_or_path)
    return peft.PeftModel.from_pretrained(model, folder, is_trainable=trainable)


def check_adapter(folder: str, base: str, field: str = "adapter") -> dict[str, LoraLayer]:
    """Checks that `folder` holds a safetensors adapter of the model `base` (folder or hub id), of plain LoRA.

    Returns:
        Name of each adapted module -> its layer; the folder holds A and B of exactly these.

    Raises:
        InputError: it does not; for another base model the message names both fingerprints.
    """
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        if not (Path(folder) / name).is_file():
            raise InputError(field, folder, f"has no {name}: give a folder with a LoRA adapter in safetensors format")
    read_adapter_settings(folder, field)
    _check_base(folder, base, field)
    layers = _base_layers(base, _stored_config(folder, field), field, (field, folder))
    _check_tensors(folder, layers, field)
    refuse_unstored(base, layers, field, folder)
    return layers


def _stored_config(folder: str, field: str) -> peft.LoraConfig:
    """As PEFT reads it: with what a folder of an older version lacks, without what a later one adds."""
    try:
        config = peft.PeftConfig.from_pretrained(folder)
    except (TypeError, ValueError) as error:
        raise InputError(field, folder, f"its {ADAPTER_CONFIG} is refused by PEFT: {first_line(error)}") from error
    assert isinstance(config, peft.LoraConfig), "checked by read_adapter_settings"
    return config


def _check_base(folder: str, base: str, field: str) -> None:
    expected = model_fingerprint(base)
    record = Path(folder) / ADAPTER_RECORD
    if not record.is_file():
        raise InputError(
            field,
            folder,
            f"has no {ADAPTER_RECORD}, so its base model is unknown: if it was trained on {base}, put "
            f'{{"format_version": 1, "base_fingerprint": "{expected}"}} into that file',
        )
    found = model_settings(record)["base_fingerprint"]
    on_hub = hub_id_of(base)
    # An earlier version knew a hub model by its name alone.
    if found != expected and (on_hub is None or found != model_fingerprint(on_hub)):
        raise InputError(
            field,
            folder,
            f"adapter of another base model: trained on {found}, but {base} is {expected}: use the model it belongs to",
        )


def _base_layers(
    base: str, lora: peft.LoraConfig, field: str, choice: tuple[str, object], *, weights: bool = True
) -> dict[str, LoraLayer]:
    """The layers that `lora` adapts in `base`; `choice` is the field and value that chose them."""
    config = load_model_config(base, field)
    refuse_quantized(base, config.to_dict(), field, files=weights)
    return lora_layers(config, lora, *choice)


def _check_tensors(folder: str, layers: Mapping[str, LoraLayer], field: str) -> None:
    """PEFT ignores tensors that it does not expect and leaves others at their random start, with a warning at most."""
    expected: dict[str, list[int]] = {}
    for name, layer in layers.items():
        side_a, side_b = tensor_names(name)
        expected |= {side_a: [layer.rank, layer.inputs], side_b: [layer.outputs, layer.rank]}
    header = read_header(Path(folder) / ADAPTER_WEIGHTS, field)
    found = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    unknown, missing = sorted(found.keys() - expected.keys()), sorted(expected.keys() - found.keys())
    if unknown:
        remedy = "save it again with PEFT's save_embedding_layers=False"
        raise InputError(field, folder, f"holds {unknown[0]!r}, which its {ADAPTER_CONFIG} does not ask for: {remedy}")
    if missing:
        raise InputError(field, folder, f"lacks {missing[0]!r}, which its {ADAPTER_CONFIG} asks for: save it again with PEFT")
    wrong = next((name for name in expected if expected[name] != found[name]), None)
    if wrong is not None:
        raise InputError(
            field, folder, f"{wrong!r} has shape {found[wrong]}, but {expected[wrong]} was expected: use its base model"
        )


def refuse_unstored(base: str, layers: Mapping[str, LoraLayer], field: str, value: object) -> None:
    """Raises InputError where a local base model does not store a weight by the name of its module."""
    if not Path(base).is_dir():
        return
    stored = stored_tensors(base)
    absent = next((name for name in layers if f"{name}.weight" not in stored), None)
    if absent is not None:
        raise InputError(
            field, value, f"adapts {absent!r}, which {base} does not store by that name: save it again with save_pretrained"
        )


def tensor_names(module: str) -> tuple[str, str]:
    """Names of A and B of a module in an adapter's file."""
    return f"base_model.model.{module}.lora_A.weight", f"base_model.model.{module}.lora_B.weight"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
