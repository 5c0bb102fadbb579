"""Models, tokenizers and LoRA adapters from disk or a hub: safetensors only, never a model's own code.

An adapter folder holds what PEFT writes and `dat_adapter.json`, which names the base model it belongs to by
`model_fingerprint`. Merging works tensor by tensor on the files, so it needs one tensor's memory, not the model's.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from dat_ray.config.training import LoraConfig
from dat_ray.errors import InputError
from dat_ray.models.architectures import attention_cap
from dat_ray.models.folders import MARKER, build_once, replace_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_RECORD = "dat_adapter.json"
MERGE_VERSION = "1"

_PROBED_BYTES = 1 << 20
# Written by the library that saved the folder, or by where it lay: nothing about the model.
_VOLATILE_CONFIG = ("transformers_version", "_name_or_path", "_model_name_or_path")
_LORA_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# LoRA variants whose merge is not alpha / rank * B A.
_UNSUPPORTED_LORA = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out")


def load_tokenizer(path: str, field: str = "model") -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a folder or hub id; without a padding token, the end-of-text token pads.

    Raises:
        InputError: nothing that transformers can load there.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(field, path, f"its tokenizer cannot be loaded ({_first_line(error)})") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(path: str, dtype: str, field: str = "model") -> PreTrainedModel:
    """Loads a causal LM on the CPU, in evaluation mode.

    Args:
        path: folder or hub id (see `dat_ray.models.embedded.resolve_model` for embedded models).
        dtype: "float32", "bfloat16" or "float16".
        field: recipe field to name in an error.

    Raises:
        InputError: no safetensors weights, an architecture that transformers lacks, or nothing there.
    """
    if Path(path).is_dir():
        weight_files(path, field)
    # A stage prints its own progress; a bar for each actor's weights would drown it.
    disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            field,
            path,
            f"cannot be loaded as a causal LM from safetensors with transformers' own code ({_first_line(error)})",
        ) from error
    if attention_cap(model.config) is not None:
        # The default would leave the cap out, without a word.
        model.set_attn_implementation("eager")
    return model.eval()


def model_fingerprint(model: str, revision: str = "main") -> str:
    """16 hex digits that change when the weights or the configuration do.

    A folder counts with config.json and, for each safetensors file, name, size, header and the first and last MiB of
    its data: cheap, and no training step leaves those as they were. A hub id counts with its revision.

    Raises:
        InputError: a folder without config.json or safetensors files.
    """
    digest = hashlib.sha256()
    if not Path(model).is_dir():
        digest.update(f"hub:{model}@{revision}".encode())
        return digest.hexdigest()[:16]
    files = weight_files(model)
    config = _read_json(Path(model) / "config.json")
    stable = {name: value for name, value in config.items() if name not in _VOLATILE_CONFIG}
    digest.update(json.dumps(stable, sort_keys=True).encode())
    for path in files:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            digest.update(f"{path.name} {size} {header_bytes}".encode())
            digest.update(file.read(header_bytes))
            digest.update(file.read(_PROBED_BYTES))
            file.seek(max(8 + header_bytes, size - _PROBED_BYTES))
            digest.update(file.read(_PROBED_BYTES))
    return digest.hexdigest()[:16]


def use_tensor_cores(dtype: torch.dtype) -> None:
    """Lets a GPU multiply float32 matrices as TF32 in this process where the model itself is in half precision.

    An adapter stays in float32 for the sake of its small updates; its products with a model of 8 significant bits (bfloat16)
    lose nothing by 11 of them, and take a small part of the time.
    """
    if dtype in (torch.bfloat16, torch.float16) and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")


def attach_lora(model: PreTrainedModel, config: LoraConfig, seed: int) -> peft.PeftModel:
    """Puts a fresh LoRA adapter on linear layers (`config.targets`, never the head), as the only trainable parameters.

    The adapter is in float32 whatever the model's dtype, because updates of 1e-4 vanish in bfloat16. Its start
    depends on `seed` alone, and the global random state is left as it was: A is Kaiming-uniform, B zero.

    Args:
        model: is changed in place: its linear layers are wrapped.
        config: rank, alpha, dropout and targets.
        seed: of A.
    """
    with torch.random.fork_rng():
        adapted = peft.get_peft_model(
            model,
            peft.LoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,
                lora_dropout=config.dropout,
                target_modules=config.targets if isinstance(config.targets, str) else list(config.targets),
                bias="none",
                task_type="CAUSAL_LM",
            ),
        )
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if not parameter.requires_grad:
            continue
        start = torch.zeros(parameter.shape)
        if ".lora_A." in name:
            torch.nn.init.kaiming_uniform_(start, a=5**0.5, generator=generator)
        parameter.data = start.to(parameter.device)
    return adapted


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
        stored = _read_json(scratch / ADAPTER_CONFIG)
        stored.update(base_model_name_or_path=None, inference_mode=True, target_modules=sorted(stored["target_modules"]))
        _write_json(scratch / ADAPTER_CONFIG, stored)
        _write_json(scratch / ADAPTER_RECORD, {"format_version": 1, "base_fingerprint": base_fingerprint})


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


def check_adapter(folder: str, base: str, field: str = "adapter") -> None:
    """Checks that `folder` holds a safetensors adapter of the model `base` (folder or hub id).

    Raises:
        InputError: it does not; the message names both fingerprints.
    """
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        if not (Path(folder) / name).is_file():
            raise InputError(field, folder, f"has no {name}: give a folder with a LoRA adapter in safetensors format")
    expected = model_fingerprint(base)
    record = Path(folder) / ADAPTER_RECORD
    if not record.is_file():
        raise InputError(
            field,
            folder,
            f"has no {ADAPTER_RECORD}, so its base model is unknown: if it was trained on {base}, put "
            f'{{"format_version": 1, "base_fingerprint": "{expected}"}} into that file',
        )
    found = _read_json(record)["base_fingerprint"]
    if found != expected:
        raise InputError(
            field,
            folder,
            f"adapter of another base model: trained on {found}, but {base} is {expected}: use the model it belongs to",
        )


def merge_adapter(base: str, adapter_folder: str, out_folder: str, dtype: str | None = None) -> str:
    """Writes the base model with the adapter added to its weights; a complete result is left alone.

    Args:
        base: folder or hub id.
        adapter_folder: written by `save_adapter`.
        out_folder: replaced as a whole if it holds a merge of something else.
        dtype: of the merged weights; None keeps that of each base tensor.

    Returns:
        The absolute path of `out_folder`.

    Raises:
        InputError: the adapter belongs to another model or is no plain LoRA.
    """
    check_adapter(adapter_folder, base)
    key = {
        "merge": MERGE_VERSION,
        "base": model_fingerprint(base),
        "adapter": hashlib.sha256((Path(adapter_folder) / ADAPTER_WEIGHTS).read_bytes()).hexdigest(),
        "adapter_config": hashlib.sha256((Path(adapter_folder) / ADAPTER_CONFIG).read_bytes()).hexdigest(),
        "dtype": str(dtype),
    }
    out = Path(out_folder).absolute()
    build_once(out, key, lambda scratch: write_merged(base, adapter_folder, scratch, dtype=dtype))
    return str(out)


def write_merged(
    base: str, adapter_folder: str, folder: Path, *, dtype: str | None, config_updates: Mapping[str, Any] | None = None
) -> None:
    """Fills `folder` with the merged model: W + (alpha / rank) B A for each adapted weight W.

    The sum is taken in float64 and rounded once, so that it depends on neither thread count nor BLAS in practice.

    Args:
        base: folder or hub id.
        adapter_folder: a LoRA adapter of that model.
        folder: exists, empty.
        dtype: of the result; None keeps each tensor's.
        config_updates: entries of config.json to set.

    Raises:
        InputError: the adapter belongs to another model or is no plain LoRA.
    """
    check_adapter(adapter_folder, base)
    source = Path(base)
    if not source.is_dir():
        source = Path(snapshot_download(base, ignore_patterns=["*.bin", "*.pt", "*.pth", "*.gguf"]))
    pairs, scale = _lora_pairs(adapter_folder)
    total_bytes = 0
    for path in weight_files(str(source)):
        merged = {}
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping: it has no iterator)
                weight = file.get_tensor(name)
                result = weight
                if name in pairs:
                    down, up = pairs.pop(name)
                    result = weight.double() + scale * (up.double() @ down.double())
                merged[name] = result.to(DTYPES[dtype] if dtype else weight.dtype).contiguous()
                total_bytes += merged[name].nbytes
        save_file(merged, folder / path.name, metadata={"format": "pt"})
    if pairs:
        raise InputError("adapter", adapter_folder, f"adapts {sorted(pairs)[0]!r}, which {base} does not store")
    for path in source.iterdir():
        if path.suffix in {".json", ".jinja", ".model", ".txt"} and path.name != MARKER:
            shutil.copyfile(path, folder / path.name)
    for index_path in folder.glob("*.safetensors.index.json"):
        index = _read_json(index_path)
        _write_json(index_path, {**index, "metadata": {"total_size": total_bytes}})
    config = _read_json(source / "config.json")
    if dtype:
        # Files of older transformers name it torch_dtype; two entries that disagree would be read by chance.
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    _write_json(folder / "config.json", {**config, **(config_updates or {})})


def _lora_pairs(folder: str) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], float]:
    """Name of each adapted weight -> (A (rank, in), B (out, rank)), and alpha / rank."""
    config = _read_json(Path(folder) / ADAPTER_CONFIG)
    unsupported = [name for name in _UNSUPPORTED_LORA if config.get(name)]
    if config.get("peft_type") != "LORA" or unsupported or config.get("bias", "none") != "none":
        reason = ", ".join(unsupported) or f"type {config.get('peft_type')}, bias {config.get('bias')}"
        raise InputError("adapter", folder, f"only plain LoRA can be merged, not {reason}: merge it with PEFT")
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(Path(folder) / ADAPTER_WEIGHTS).items():
        match = _LORA_TENSOR.fullmatch(name)
        if match is None:
            raise InputError("adapter", folder, f"only plain LoRA tensors can be merged, not {name!r}: merge it with PEFT")
        sides.setdefault(match["module"] + ".weight", {})[match["side"]] = tensor
    return {name: (pair["A"], pair["B"]) for name, pair in sides.items()}, config["lora_alpha"] / config["r"]


def weight_files(folder: str, field: str = "model") -> list[Path]:
    """The safetensors files of a model folder that transformers loads, by name."""
    found = sorted(Path(folder).glob("model*.safetensors"))
    if not found:
        others = sorted(p.name for p in Path(folder).iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".gguf"})
        what = f"has {others[0]} but no safetensors weights" if others else "has no safetensors weights"
        raise InputError(field, folder, f"{what}: only safetensors are loaded, convert it with save_pretrained")
    if not (Path(folder) / "config.json").is_file():
        raise InputError(field, folder, "has no config.json: give the folder of a whole model")
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
