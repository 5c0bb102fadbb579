"""Which files of a model folder are its weights, by the rule of transformers' `from_pretrained`.

transformers 5.19 takes `model.safetensors` and, without one, the shards that `model.safetensors.index.json` names; vLLM takes
the shards of an index and, without one, every safetensors file. A folder in which the two rules differ holds two models, and
whoever reads it the other way merges, fingerprints or serves weights that nobody loads: it is refused.

Imports no torch: the driver of a run asks too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dat_ray.data.stored import MISSHAPEN, model_settings
from dat_ray.errors import InputError
from dat_ray.json_text import JsonError, parse_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_OTHER_FORMATS = {".bin", ".pt", ".pth", ".ckpt", ".gguf"}
# How a file begins that git-lfs leaves in place of the real one.
_POINTER = b"version https://git-lfs"
# What the safetensors library reads at most.
_HEADER_BYTES = 100_000_000
_LAYER_COUNTS, _MOST_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers"), 10_000
_QUANTIZED_DTYPES = ("F4", "F6", "F8")
_INTEGER_DTYPES = ("I", "U")
# What quantization methods say beside or instead of `quantization_config`.
_QUANTIZATION_ENTRIES = ("quantization_config", "compression_config")
_QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
# Names under which integer tensors are packed weights, not buffers.
_WEIGHT_NAMES = ("weight", "qweight", "weight_packed", "_blocks")


def weight_files(folder: str, field: str = "model") -> list[Path]:
    """The safetensors files of a model folder that transformers loads, by name.

    Args:
        folder: local folder of a whole model.
        field: recipe field to name in an error.

    Raises:
        InputError: no safetensors weights or config.json, an index with missing shards, safetensors files that are left over,
            an adapter beside the weights, or a configuration that names other files.
    """
    root = Path(folder)
    stored = sorted(path.name for path in root.glob("*.safetensors") if path.is_file())
    chosen, indexed = _chosen(root, stored, field)
    if not (root / "config.json").is_file():
        raise InputError(field, folder, "has no config.json: give the folder of a whole model")
    if (root / "adapter_config.json").is_file():
        raise InputError(
            field, folder, "holds adapter_config.json beside a model's weights, and loaders differ in whether that counts: "
            "move the adapter to a folder of its own"
        )  # fmt: skip
    if check_layers(folder, field).get("transformers_weights"):
        raise InputError(field, folder, "its config.json names weights by `transformers_weights`, which vLLM does not read: "
                         f"save them as {SINGLE}")  # fmt: skip
    unread = [name for name in stored if name not in chosen and (name.startswith("model") or not indexed)]
    if unread:
        what = f"the shards of {INDEX}" if indexed else SINGLE
        raise InputError(field, folder, f"holds {unread[0]} beside {what}, so it is not clear which are the weights: remove one")
    return [root / name for name in sorted(chosen)]


def _chosen(root: Path, stored: list[str], field: str) -> tuple[set[str], bool]:
    """Names of the files to load, and whether an index names them."""
    index = root / INDEX
    if not index.is_file():
        if SINGLE in stored:
            return {SINGLE}, False
        others = sorted(path.name for path in root.iterdir() if path.suffix in _OTHER_FORMATS)
        if stored:
            raise InputError(field, str(root), f"holds {stored[0]}, but neither {SINGLE} nor {INDEX}: only these are loaded, "
                             "save it again with save_pretrained")  # fmt: skip
        what = f"has {others[0]} but no safetensors weights" if others else "has no safetensors weights"
        raise InputError(field, str(root), f"{what}: only safetensors are loaded, convert it with save_pretrained")
    try:
        named = set(model_settings(index, field)["weight_map"].values())
    except (KeyError, TypeError, AttributeError):
        named = set()
    if not named or any(not isinstance(name, str) or Path(name).name != name for name in named):
        raise InputError(field, str(root), f"its {INDEX} is no index of files of this folder: download it again")
    missing = sorted(named - set(stored))
    if SINGLE in stored and SINGLE not in named:
        raise InputError(field, str(root), f"holds both {SINGLE} and {INDEX} of other files: transformers loads the first, vLLM "
                         "the second; remove the one that is left over")  # fmt: skip
    if missing:
        raise InputError(field, str(root), f"lacks {missing[0]}, which its {INDEX} names: download it again")
    return named, True


def stored_tensors(folder: str, field: str = "model") -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype as safetensors writes it, shape) of every tensor, from the headers of `weight_files`.

    Raises:
        InputError: as `weight_files`, or a file that is cut short or no safetensors file.
    """
    found = {}
    for path in weight_files(folder, field):
        for name, entry in read_header(path, field).items():
            if name != "__metadata__":
                found[name] = (entry["dtype"], tuple(entry["shape"]))
    return found


def check_stored(folder: str, field: str = "model") -> int:
    """Opens the header of every file of a model's weights, and holds them against the index where there is one.

    Returns:
        Bytes of the files.

    Raises:
        InputError: as `stored_tensors`, or a tensor that the index names and its shard does not hold.
    """
    root, held = Path(folder), {}
    for path in weight_files(folder, field):
        for name in read_header(path, field):
            held[name] = path.name
    index = root / INDEX
    if index.is_file() and SINGLE not in held.values():
        for name, shard in model_settings(index, field)["weight_map"].items():
            if held.get(name) != shard:
                raise InputError(field, folder, f"its {INDEX} has {name!r} in {shard}, which lacks it: download it again")
    return sum(path.stat().st_size for path in weight_files(folder, field))


def read_header(path: Path, field: str) -> dict[str, Any]:
    """The JSON header of a safetensors file, checked against the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            remedy = (
                "is a pointer of git-lfs, which stands for a file that was not fetched: run `git lfs pull` there, or download it"
            )
            raise InputError(field, str(path), remedy)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        try:
            header = parse_object(file.read(length)) if 8 + length <= size and length <= _HEADER_BYTES else None
            ends = [_end(entry) for name, entry in (header or {}).items() if name != "__metadata__"]
        except (JsonError, *MISSHAPEN):
            header = None
    if header is None or size != 8 + length + max(ends, default=0):
        raise InputError(field, str(path), "is cut short or no safetensors file: download it again")
    return header


def _end(entry: Mapping[str, Any]) -> int:
    """Where a tensor's data ends.

    Raises:
        ValueError, LookupError, TypeError: the entry does not describe a tensor.
    """
    begin, end = entry["data_offsets"]
    sizes = [begin, end, *entry["shape"]]
    if not isinstance(entry["dtype"], str) or any(type(number) is not int or number < 0 for number in sizes) or begin > end:
        raise ValueError("no tensor")
    return int(end)


def check_layers(folder: str, field: str) -> dict[str, Any]:
    """The content of a folder's config.json, if a loader can be given it: it makes lists as long as the number of layers.

    Raises:
        InputError: it cannot be read, or has a number of layers that no model has.
    """
    path = Path(folder) / "config.json"
    settings = model_settings(path, field)
    for owner in (settings, settings.get("text_config") or {}):
        for name in _LAYER_COUNTS:
            count = owner.get(name) if isinstance(owner, Mapping) else None
            if count is not None and (type(count) is not int or not 0 < count <= _MOST_LAYERS):
                remedy = f"it should be a number of layers, 1 to {_MOST_LAYERS}: download or save the model again"
                raise InputError(field, str(path), f"has {name} = {json.dumps(count)[:40]}, {remedy}")
    return settings


def refuse_quantized(model: str, config: Mapping[str, Any], field: str = "model", *, files: bool = True) -> None:
    """Refuses weights that are stored as codes and scales: adding to them, or converting them, gives another model.

    Args:
        model: folder, whose files are looked at too, or hub id.
        config: content of its config.json.
        field: recipe field to name in an error.
        files: whether a folder's files are looked at; else the configuration alone.

    Raises:
        InputError: a quantized model, by its configuration, its files or its tensors.
    """
    sign = next(_signs(config), None)
    if sign is None and files and Path(model).is_dir():
        sign = next((name for name in _QUANTIZATION_FILES if (Path(model) / name).is_file()), None)
        sign = sign or next(
            (f"{name} in {dtype}" for name, (dtype, _) in stored_tensors(model, field).items() if _is_code(name, dtype)), None
        )
    if sign is not None:
        raise InputError(
            field, model, f"is quantized ({sign}), so its weights can be neither adapted, merged nor converted: use the model "
            "in bfloat16, float16 or float32"
        )  # fmt: skip


def _signs(config: Mapping[str, Any]) -> Iterator[str]:
    for entry in _QUANTIZATION_ENTRIES:
        if config.get(entry):
            settings = config[entry]
            method = settings.get("quant_method") if isinstance(settings, Mapping) else None
            yield f"{entry}{f' of {method}' if method else ''} in config.json"
    if isinstance(config.get("text_config"), Mapping):
        yield from _signs(config["text_config"])


def _is_code(name: str, dtype: str) -> bool:
    return dtype.startswith(_QUANTIZED_DTYPES) or (dtype.startswith(_INTEGER_DTYPES) and name.endswith(_WEIGHT_NAMES))
