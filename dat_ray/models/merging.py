"""Adds a LoRA adapter to the weights of its base model, tensor by tensor on the files: one tensor's memory, not the model's."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dat_ray.cache import cache_root
from dat_ray.data.ids import row_id
from dat_ray.data.stored import model_settings
from dat_ray.models.adapter_settings import ADAPTER_CONFIG
from dat_ray.models.adapters import ADAPTER_WEIGHTS, check_adapter, refuse_unstored, tensor_names, write_json
from dat_ray.models.folders import MARKER, build_once
from dat_ray.models.loading import DTYPES, model_files, model_fingerprint
from dat_ray.models.lora_layers import LoraLayer
from dat_ray.models.weight_files import refuse_quantized, weight_files

MERGE_VERSION = "1"


def cached_merge(base: str, adapter_folder: str, dtype: str | None = None) -> str:
    """The base model with the adapter added to its weights, made in this machine's cache on first use.

    It lies there and not beside the adapter, since whoever can write into a run directory could put a model of another's
    weights there and mark it as complete.

    Args:
        base, adapter_folder, dtype: as for `merge_adapter`.

    Returns:
        Its absolute path, whose name holds what it was made from.

    Raises:
        InputError: as `merge_adapter`, or the cache cannot be written.
    """
    check_adapter(adapter_folder, base)
    key = _merge_key(base, adapter_folder, dtype)
    out = cache_root().absolute() / "merged" / row_id(*key, *key.values())
    return merge_adapter(base, adapter_folder, str(out), dtype)


def merge_adapter(base: str, adapter_folder: str, out_folder: str, dtype: str | None = None) -> str:
    """Writes the base model with the adapter added to its weights; a complete result is left alone.

    Args:
        base: folder or hub id.
        adapter_folder: written by `save_adapter`.
        out_folder: replaced as a whole if it holds a merge of something else. What is complete there is trusted: nobody but
            this user may be able to write there.
        dtype: of the merged weights; None keeps that of each base tensor.

    Returns:
        The absolute path of `out_folder`.

    Raises:
        InputError: the adapter belongs to another model or is no plain LoRA, or the model is quantized.
    """
    check_adapter(adapter_folder, base)
    out = Path(out_folder).absolute()
    key = _merge_key(base, adapter_folder, dtype)
    build_once(out, key, lambda scratch: write_merged(base, adapter_folder, scratch, dtype=dtype))
    return str(out)


def _merge_key(base: str, adapter_folder: str, dtype: str | None) -> dict[str, str]:
    """What determines the merged weights."""
    return {
        "merge": MERGE_VERSION,
        "base": model_fingerprint(base),
        "adapter": hashlib.sha256((Path(adapter_folder) / ADAPTER_WEIGHTS).read_bytes()).hexdigest(),
        "adapter_config": hashlib.sha256((Path(adapter_folder) / ADAPTER_CONFIG).read_bytes()).hexdigest(),
        "dtype": str(dtype),
    }


def write_merged(
    base: str, adapter_folder: str, folder: Path, *, dtype: str | None, config_updates: Mapping[str, Any] | None = None
) -> None:
    """Fills `folder` with the merged model: W + scale * B A for each adapted weight W, with PEFT's scale of that layer.

    The sum is taken in float64 and rounded once, so that it depends on neither thread count nor BLAS in practice.

    Args:
        base: folder or hub id.
        adapter_folder: a LoRA adapter of that model.
        folder: exists, empty.
        dtype: of the result; None keeps each tensor's.
        config_updates: entries of config.json to set.

    Raises:
        InputError: the adapter belongs to another model or is no plain LoRA, or the model is quantized.
    """
    layers = check_adapter(adapter_folder, base)
    source = model_files(base)
    if str(source) != base:
        refuse_quantized(str(source), model_settings(source / "config.json"))
        refuse_unstored(str(source), layers, "adapter", adapter_folder)
    tensors = load_file(Path(adapter_folder) / ADAPTER_WEIGHTS)
    adapted = {f"{name}.weight": (name, layer) for name, layer in layers.items()}
    total_bytes = 0
    for path in weight_files(str(source)):
        merged = {}
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping: it has no iterator)
                weight = file.get_tensor(name)
                result = weight
                if name in adapted:
                    module, layer = adapted[name]
                    result = weight.double() + _update(layer, *(tensors[side] for side in tensor_names(module)))
                # Buffers of whole numbers, such as GPT-2's stored masks, are nobody's weights.
                wanted = DTYPES[dtype] if dtype and weight.is_floating_point() else weight.dtype
                merged[name] = result.to(wanted).contiguous()
                total_bytes += merged[name].nbytes
        save_file(merged, folder / path.name, metadata={"format": "pt"})
    for path in source.iterdir():
        if path.suffix in {".json", ".jinja", ".model", ".txt"} and path.name != MARKER:
            shutil.copyfile(path, folder / path.name)
    for index_path in folder.glob("*.safetensors.index.json"):
        index = model_settings(index_path)
        write_json(index_path, {**index, "metadata": {"total_size": total_bytes}})
    config = model_settings(source / "config.json")
    if dtype:
        # Files of older transformers name it torch_dtype; two entries that disagree would be read by chance.
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    write_json(folder / "config.json", {**config, **(config_updates or {})})


def _update(layer: LoraLayer, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """What is added to a weight, float64, in the weight's own orientation; `down` is A (rank, in), `up` is B (out, rank)."""
    update = layer.scale * (up.double() @ down.double())
    return update.T if layer.transposed else update
