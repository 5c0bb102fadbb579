"""From a published masked diffusion checkpoint to a sampler folder: once, offline, in a megabyte of memory.

No tensor is computed with: a safetensors file is copied byte by byte under a header with other names. The sha256 of each
source file is taken on the way and stored, and the folder appears by one rename, so that a killed conversion leaves nothing
that could be mistaken for a sampler.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dat_ray.cache import cache_root
from dat_ray.data.stored import model_settings
from dat_ray.diffusion.canvas import SamplerSpec, banned_ids
from dat_ray.errors import InputError
from dat_ray.models.chat import prompt_segments
from dat_ray.models.families import Family
from dat_ray.models.folders import build_once
from dat_ray.models.layouts import ARCHITECTURES, TensorShape, layout_tensors
from dat_ray.models.loading import load_tokenizer, model_fingerprint
from dat_ray.models.tensor_names import layout_name
from dat_ray.models.weight_files import read_header, weight_files
from dat_ray.progress import Progress

# Raise it when a folder converted by an older version of this code must not be used any more.
CONVERSION = "2"
RECORD = "conversion.json"
# A conversion is a copy of the weights: minutes for an 8B model on a slow disk, and others may wait for it.
LOCK_WAIT_S = 3600.0
_COPY_BYTES = 1 << 20
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_MASK_TOKENS = ("<|mdm_mask|>", "<|mask|>", "<[MASK]>", "<mask>", "[MASK]")


def converted(source: str, family: Family, spec: str, field: str) -> str:
    """The cached sampler folder of a published checkpoint, made on first use.

    Args:
        source: local folder of the checkpoint.
        family: of its config.json, from `recognize`.
        spec, field: what the user named, and where, for messages.

    Raises:
        InputError: as `convert`.
    """
    weight_files(source, field)  # before they are fingerprinted, so that what is wrong with them is said of this field
    key: dict[str, Any] = {"conversion": CONVERSION, "source": model_fingerprint(source), "layout": family.layout}
    if family.banned:
        key["banned"] = list(family.banned)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    name = re.sub(r"[^\w.-]+", "-", "-".join(spec.rstrip("/").split("/")[-2:])).strip("-.")
    folder = cache_root().absolute() / "samplers" / f"{name}-{digest[:8]}"
    build_once(folder, key, lambda scratch: convert(source, family, scratch, spec, field), lock_wait_s=LOCK_WAIT_S)
    return str(folder)


def convert(source: str, family: Family, folder: Path, spec: str, field: str = "sampler.model") -> None:
    """Fills `folder` with a sampler.

    Args:
        source: folder of the checkpoint.
        family: what `recognize` made of its config.json.
        folder: exists, empty.
        spec, field: what the user named, and where, for messages.

    Raises:
        InputError: a shard that is cut short, or tensors that are missing, unknown or of another shape; no mask token.
    """
    files = weight_files(source, field)
    headers = {path: read_header(path, field) for path in files}
    _check_tensors(family, headers, spec, field)
    total = sum(path.stat().st_size for path in files)
    checksums, done = {}, 0
    with Progress(f"converting {spec} ({family.name})", total >> 20, unit="MiB") as progress:
        for path in files:
            checksums[path.name] = _copy_renamed(path, headers[path], folder / path.name)
            done += path.stat().st_size
            progress.update(done >> 20, path.name)
    if len(files) > 1:
        placed = {layout_name(tensor): path.name for path in files for tensor in headers[path] if tensor != "__metadata__"}
        sizes = [entry["data_offsets"] for header in headers.values() for name, entry in header.items() if name != "__metadata__"]
        index = {"metadata": {"total_size": sum(high - low for low, high in sizes)}, "weight_map": placed}
        _write_json(folder / "model.safetensors.index.json", index)
    _copy_tokenizer(Path(source), folder)
    tokenizer = load_tokenizer(str(folder), field)
    _write_json(folder / "config.json", family.config)
    sampler_spec(family, tokenizer, spec, field).write(folder)
    record = {"family": family.name, "source": spec, "source_fingerprint": model_fingerprint(source), "sha256": checksums}
    _write_json(folder / RECORD, record)


def sampler_spec(family: Family, tokenizer: PreTrainedTokenizerBase, spec: str, field: str) -> SamplerSpec:
    """What the denoising law must know of a converted model.

    A shifted model sees a token to the left of the first mask in either layout: that of the family's own code, else of the
    text's beginning, or, for a tokenizer without one, of its end, which separated the training texts.
    """
    mask, vocabulary = _mask_token(family, tokenizer, spec, field), family.config["vocab_size"]
    banned = tuple(sorted({*banned_ids(tokenizer, mask, vocabulary), *(i for i in family.banned if i < vocabulary)}))
    own = _added_tokens(tokenizer, family.start_token)
    if family.start_token is not None and not own:
        raise InputError(
            field, spec, f"its tokenizer lacks {family.start_token}, which {family.name} puts before a text: download it again"
        )
    if family.layout == "chat":
        try:
            before, between = prompt_segments(tokenizer)
        except InputError as error:
            raise InputError(field, spec, error.remedy) from None
        return SamplerSpec(mask, family.shift, banned, "chat", (*own, *before), tuple(between))
    first = [*own, tokenizer.bos_token_id, family.config.get("bos_token_id"), tokenizer.eos_token_id]
    start = next((token for token in first if token is not None), None) if family.shift else None
    return SamplerSpec(mask, family.shift, banned, "answer", () if start is None else (start,))


def _mask_token(family: Family, tokenizer: PreTrainedTokenizerBase, spec: str, field: str) -> int:
    own, named = _added_tokens(tokenizer, family.mask_token), _added_tokens(tokenizer, *_MASK_TOKENS)
    candidates = [family.mask_token_id, *own, tokenizer.mask_token_id, *named, family.usual_mask_token_id]
    mask = next((token for token in candidates if token is not None), None)
    if mask is None or not 0 <= mask < family.config["vocab_size"]:
        raise InputError(field, spec, f"has no mask token ({mask}): put its id into config.json as `mask_token_id`")
    return int(mask)


def _added_tokens(tokenizer: PreTrainedTokenizerBase, *texts: str | None) -> list[int]:
    """Ids of the added tokens with one of these texts."""
    return [i for i, token in tokenizer.added_tokens_decoder.items() if token.content in texts]


def _check_tensors(family: Family, headers: dict[Path, dict[str, Any]], spec: str, field: str) -> None:
    """Compares names and shapes with what the converted configuration promises."""
    if family.config["model_type"] not in ARCHITECTURES:
        raise InputError(field, spec, f"has layout {family.config['model_type']}, known are {', '.join(ARCHITECTURES)}")
    expected = layout_tensors(family.config)
    found: dict[str, TensorShape] = {}
    for header in headers.values():
        for name, entry in header.items():
            if name != "__metadata__":
                found[layout_name(name)] = tuple(entry["shape"])
    if family.config.get("tie_word_embeddings"):
        found.pop("lm_head.weight", None)
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing:
        raise InputError(field, spec, f"lacks {len(missing)} tensors, the first is {missing[0]}: download the checkpoint again")
    if unknown:
        raise InputError(field, spec, f"has {len(unknown)} tensors that {family.name} does not know, the first is {unknown[0]}")
    wrong = next((name for name in expected if expected[name] != found[name]), None)
    if wrong:
        raise InputError(field, spec, f"{wrong} has shape {found[wrong]}, but its config.json says {expected[wrong]}")


def _copy_renamed(source: Path, header: dict[str, Any], target: Path) -> str:
    """Copies a safetensors file under a header with the layout's names.

    Returns:
        The sha256 of `source`.
    """
    renamed = {layout_name(name): entry for name, entry in header.items() if name != "__metadata__"}
    text = json.dumps({"__metadata__": {"format": "pt"}, **renamed}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        start = reader.read(8)
        start += reader.read(int.from_bytes(start, "little"))
        digest.update(start)
        writer.write(len(text).to_bytes(8, "little") + text)
        while block := reader.read(_COPY_BYTES):
            digest.update(block)
            writer.write(block)
    return digest.hexdigest()


def _copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies the tokenizer's data; a class of the repository's own is replaced by the stock one it derives from."""
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return
    config = model_settings(path, "sampler.model")
    if config.pop("auto_map", None) is not None:
        whole = (folder / "tokenizer.json").is_file()
        # Dream's tokenizer is Qwen2's with more special tokens, published as vocabulary and merges.
        config["tokenizer_class"] = "PreTrainedTokenizerFast" if whole else "Qwen2Tokenizer"
    _write_json(path, config)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
