"""Models and tokenizers from disk or a hub: safetensors only, never a model's own code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file
from transformers.utils.logging import disable_progress_bar

from dat_ray.data.stored import model_settings
from dat_ray.errors import DatError, InputError
from dat_ray.models.architectures import attention_cap
from dat_ray.models.hub import MAIN, hub_folder
from dat_ray.models.weight_files import check_layers, check_stored, weight_files

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_PROBED_BYTES = 1 << 20
# Written by the library that saved the folder, or by where it lay: nothing about the model.
_VOLATILE_CONFIG = ("transformers_version", "_name_or_path", "_model_name_or_path")


def load_tokenizer(path: str, field: str = "model") -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a folder or hub id; without a padding token, the end-of-text token pads.

    Raises:
        InputError: nothing that transformers can load there.
    """
    with _named(field, path, "its tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model_config(path: str, field: str = "model") -> PreTrainedConfig:
    """The configuration of a folder or hub id, as transformers reads it; weights are neither loaded nor downloaded.

    Raises:
        InputError: nothing there, or a model type that transformers lacks.
    """
    if Path(path).is_dir():
        check_layers(path, field)
    with _named(field, path, "its configuration cannot be loaded with transformers' own code"):
        return AutoConfig.from_pretrained(path, trust_remote_code=False)


@contextmanager
def _named(field: str, path: str, problem: str) -> Iterator[None]:
    """Turns what libraries raise over a damaged file into one line: of what kind it is follows no rule.

    Raises:
        InputError: names the model.
    """
    try:
        yield
    except (DatError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # A library in Rust that gives up is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(field, path, f"{problem} ({first_line(error)})") from error


def load_causal_lm(path: str, dtype: str, field: str = "model") -> PreTrainedModel:
    """Loads a causal LM on the CPU, in evaluation mode.

    Args:
        path: folder or hub id (see `dat_ray.models.embedded.resolve_model` for embedded models).
        dtype: "float32", "bfloat16" or "float16".
        field: recipe field to name in an error.

    Raises:
        InputError: no safetensors weights, damaged ones, an architecture that transformers lacks, an adapter, or nothing there.
    """
    if Path(path).is_dir():
        check_stored(path, field)
    # A stage prints its own progress; a bar for each actor's weights would drown it.
    disable_progress_bar()
    try:
        if not Path(path).is_dir() and find_adapter_config_file(path) is not None:
            # transformers would load the base model that the adapter names, and the adapter by whatever rule it has.
            raise InputError(field, path, "holds an adapter: download it, and give its folder where an adapter is asked for")
        model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            field,
            path,
            f"cannot be loaded as a causal LM from safetensors with transformers' own code ({first_line(error)})",
        ) from error
    if attention_cap(model.config) is not None:
        # The default would leave the cap out, without a word.
        model.set_attn_implementation("eager")
    return model.eval()


def model_files(model: str, field: str = "model", *, download: bool = True) -> Path:
    """The local folder of a model's files: the folder itself, or a hub model's in the cache.

    Args:
        model: folder or hub id.
        field: recipe field to name in an error.
        download: whether what is missing may be fetched; else a hub model must have been loaded on this machine.

    Raises:
        InputError: a hub model that cannot be had.
    """
    return Path(model) if Path(model).is_dir() else hub_folder(model, MAIN, field, download=download)


def model_fingerprint(model: str, revision: str = MAIN) -> str:
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
    config = model_settings(Path(model) / "config.json")
    stable = {name: value for name, value in config.items() if name not in _VOLATILE_CONFIG}
    digest.update(json.dumps(stable, sort_keys=True).encode())
    for path in files:
        size = path.stat().st_size
        with path.open("rb") as file:
            # Of a file that is none these eight bytes may stand for more than any memory holds.
            header_bytes = min(size, int.from_bytes(file.read(8), "little"))
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


def first_line(error: BaseException) -> str:
    """Of an error's message, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
