"""A model's tiny double: its architecture, options, vocabulary and file format, with random weights of a few megabytes.

Only sizes change: layers, widths, heads and experts. Tied embeddings, special ids, windows, rotary embeddings and lengths stay,
and so do the tokenizer and its chat template, whose files are copied. Weights are written under the names and in the pieces in
which the original is published, so that conversions, merges and loaders have the same to do.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dat_ray.cache import cache_root
from dat_ray.data.stored import model_settings
from dat_ray.models.adapter_settings import ADAPTER_CONFIG
from dat_ray.models.families import recognize
from dat_ray.models.folders import build_once
from dat_ray.models.layouts import layout_tensors
from dat_ray.models.served import ModelSource
from dat_ray.models.tensor_names import published_name
from dat_ray.models.weight_files import INDEX, SINGLE

if TYPE_CHECKING:
    import torch

# Raise it when a folder made by an older version of this code must not be used any more.
SHRINKING = "1"
# Heads of 32 are the smallest that vLLM's attention on a CPU takes.
WIDTH, HEADS, HEAD, INNER = 64, 2, 32, 96
# Of random weights: large enough that the next token depends on the text. From the usual start, tied embeddings would repeat the
# last one for ever.
SPREAD = 0.2
# Words that a double prefers, the commonest of its vocabulary, and how far other tokens are behind: random tokens of all scripts
# would take several times their number in another model's tokens, and no training row would hold them.
WORDS, OTHERS = 2000, 0.05
_WORD = re.compile(r"[Ġ▁ ]?[a-z]{2,9}")
LAYERS, EXPERTS, CHOSEN_EXPERTS, EXPERT_INNER, LORA_RANK = 2, 4, 2, 32, 4
# Options that are sizes, under the names that configurations give them -> the most of each.
_SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd"), WIDTH),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head"), HEADS),
    "head_dim": HEAD,
    **dict.fromkeys(("intermediate_size", "mlp_hidden_size", "n_inner", "dense_intermediate_size"), INNER),
    **dict.fromkeys(("moe_intermediate_size", "expert_intermediate_size", "shared_expert_intermediate_size"), EXPERT_INNER),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), EXPERTS),
    "num_experts_per_tok": CHOSEN_EXPERTS,
}
_LAYER_COUNTS = ("num_hidden_layers", "n_layers", "n_layer")
_KEY_HEADS = ("num_key_value_heads", "n_kv_heads")
# One entry a layer; `mlp_only_layers` has the numbers of some.
_PER_LAYER = ("layer_types", "moe_layer_freq", "no_rope_layers", "mlp_layer_types")
_PARTS = ("text_config", "vision_config")
# What a weights file, or an adapter, has beside it and a double has of its own.
_NOT_COPIED = ("config.json", INDEX, ADAPTER_CONFIG)
_DESCRIPTION = (".json", ".txt", ".jinja", ".model")


@dataclass(frozen=True)
class Wanted:
    """What a double is made for.

    Attributes:
        sampler: whether the model in-paints prompts.
        layers: the fewest that it may have, since a recipe names some of them by number.
    """

    sampler: bool = False
    layers: int = LAYERS


def shrunk(config: Mapping[str, Any], layers: int = LAYERS) -> dict[str, Any]:
    """A configuration with smaller sizes; every other entry is as it was.

    Args:
        config: content of a config.json.
        layers: at least so many stay, or as many as there are kinds of layers, or all where there are fewer.
    """
    small = dict(config)
    for name, most in _SIZES.items():
        if isinstance(config.get(name), int):
            small[name] = min(config[name], most)
    heads = next((config[name] for name in ("num_attention_heads", "n_heads", "n_head") if name in config), None)
    for name in _KEY_HEADS:
        if isinstance(config.get(name), int) and heads:
            # Shared keys stay shared.
            small[name] = min(config[name], HEADS) if config[name] == heads else 1
    for name in _LAYER_COUNTS:
        if isinstance(config.get(name), int):
            small |= _fewer_layers(config, name, layers)
    for name in ("rope_scaling", "rope_parameters"):
        if isinstance(config.get(name), dict):
            small[name] = {key: _frequencies(key, value, config) for key, value in config[name].items()}
    for name in _PARTS:
        if isinstance(config.get(name), dict):
            small[name] = shrunk(config[name], layers if name == "text_config" else LAYERS)
    return small


def _fewer_layers(config: Mapping[str, Any], name: str, layers: int) -> dict[str, Any]:
    total = config[name]
    lists = {key: config[key] for key in _PER_LAYER if isinstance(config.get(key), list) and len(config[key]) == total}
    # The first of each kind of layer, and the first others up to the number.
    kinds: dict[tuple[Any, ...], int] = {}
    for number in range(total):
        kinds.setdefault(tuple(map(str, (values[number] for values in lists.values()))), number)
    firsts = sorted(kinds.values())
    count = min(total, max(layers, len(firsts)))
    others = [number for number in range(total) if number not in firsts]
    kept = sorted([*firsts, *others[: count - len(firsts)]])
    small: dict[str, Any] = {name: count} | {key: [values[number] for number in kept] for key, values in lists.items()}
    if isinstance(config.get("mlp_only_layers"), list):
        small["mlp_only_layers"] = [place for place, number in enumerate(kept) if number in config["mlp_only_layers"]]
    return small


def _frequencies(key: str, value: Any, config: Mapping[str, Any]) -> Any:
    """Factors of a rotary embedding, one for each pair of a head's numbers."""
    if key not in ("short_factor", "long_factor") or not isinstance(value, list):
        return value
    before = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return value[: max(1, len(value) * HEAD // before)]


def tiny_model(source: ModelSource, wanted: Wanted, field: str) -> str:
    """The double of a model or adapter, made in this machine's cache on first use.

    Args:
        source: of which the description is here: configuration, tokenizer and template. Weights are not read.
        wanted: what it is made for.
        field: recipe field to name in an error.

    Returns:
        An absolute folder whose last name is the model's own, since that tells base and instruct models apart.

    Raises:
        InputError: a configuration that transformers cannot build a model from, or no sampler of a known family.
    """
    base = None if source.base is None else tiny_model(source.base, wanted, field)
    key = {"shrinking": SHRINKING, "wanted": repr(wanted), "base": str(base), "files": _digest(source.folder)}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_root().absolute() / "rehearsal" / digest / source.spec.rstrip("/").rpartition("/")[2].replace(":", "-")

    def build(scratch: Path) -> None:
        for path in _description(source.folder):
            if path.name not in _NOT_COPIED:
                shutil.copyfile(path, scratch / path.name)
        if base is not None:
            _write_adapter(source.folder, Path(base), scratch)
        elif wanted.sampler:
            _write_sampler(source, scratch, wanted, field)
        else:
            _write_causal(source, scratch, wanted)

    build_once(folder, key, build)
    return str(folder)


def _description(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in _DESCRIPTION)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in _description(folder):
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()} ".encode())
    return digest.hexdigest()[:16]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_sampler(source: ModelSource, folder: Path, wanted: Wanted, field: str) -> None:
    import torch
    from safetensors.torch import save_file

    from dat_ray.models.loading import DTYPES

    config = shrunk(model_settings(source.folder / "config.json", field), wanted.layers)
    published = "dat_sampler" not in config
    # By its last name alone: there are no weights to look at.
    layout = recognize(config, Path(source.spec).name, field).config if published else config
    dtype = DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in sorted(layout_tensors(layout).items()):
        values = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * SPREAD
        if name == ("model.embed_tokens.weight" if layout.get("tie_word_embeddings") else "lm_head.weight"):
            _prefer_words(values, folder)
        tensors[published_name(name, config) if published else name] = values.to(dtype)
    _write_json(folder / "config.json", config)
    if not (source.folder / INDEX).is_file():
        save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
        return
    placed: dict[str, str] = {}
    for part, file in enumerate(("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
        names = sorted(tensors)[part::2]
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(names, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": placed})


def _write_causal(source: ModelSource, folder: Path, wanted: Wanted) -> None:
    import torch
    import transformers
    from transformers.utils.logging import disable_progress_bar

    from dat_ray.models.loading import DTYPES, load_model_config

    disable_progress_bar()
    original = model_settings(source.folder / "config.json")
    _complete(original, load_model_config(str(source.folder)).to_dict())
    config = shrunk(original, wanted.layers)
    _write_json(folder / "config.json", config)
    small = load_model_config(str(folder))
    names = config.get("architectures") or [""]
    kind = getattr(transformers, str(names[0]), None)
    dtype = DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(small) if kind is None else kind(small)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=SPREAD)
    _prefer_words(model.get_output_embeddings().weight.data, folder)
    model = model.to(dtype)
    size = sum(parameter.nbytes for parameter in model.parameters())
    pieces = {"max_shard_size": size // 2} if (source.folder / INDEX).is_file() else {}
    weights = folder / "weights"
    model.save_pretrained(weights, **pieces)
    for path in weights.iterdir():
        if path.name == INDEX or path.suffix == ".safetensors":
            path.rename(folder / path.name)
    shutil.rmtree(weights)


def _prefer_words(head: torch.Tensor, folder: Path) -> None:
    """Scales the (V, d) rows of an output head in place, so that plain words are likelier than anything else.

    Args:
        head: of random numbers.
        folder: with the tokenizer; BPE and SentencePiece number their pieces from the commonest to the rarest.
    """
    from dat_ray.models.loading import load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    pieces = tokenizer.convert_ids_to_tokens(range(min(len(tokenizer), len(head))))
    words = [number for number, piece in enumerate(pieces) if piece is not None and _WORD.fullmatch(piece)][:WORDS]
    if words:
        kept = head[words].clone()
        head *= OTHERS
        head[words] = kept


def _complete(config: dict[str, Any], whole: Mapping[str, Any]) -> None:
    """Writes out the sizes that a configuration leaves to its family's defaults, which would not be small.

    Args:
        config: content of a config.json, changed in place.
        whole: the same with all defaults.
    """
    for name in (*_SIZES, *_LAYER_COUNTS, *_KEY_HEADS):
        if name not in config and isinstance(whole.get(name), int):
            config[name] = whole[name]
    kinds = whole.get("layer_types")
    # Where the kinds follow from a rule of the family, a few layers would be of one kind alone.
    if isinstance(kinds, list) and len(set(kinds)) > 1:
        config["layer_types"] = kinds
    for part in _PARTS:
        if isinstance(config.get(part), dict) and isinstance(whole.get(part), dict):
            _complete(config[part], whole[part])


def _write_adapter(adapter: Path, base: Path, folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from dat_ray.models.loading import load_causal_lm

    settings = LoraConfig.from_pretrained(str(adapter))
    settings.r, settings.inference_mode = min(settings.r, LORA_RANK), False
    settings.base_model_name_or_path, settings.revision = str(base), None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(load_causal_lm(str(base), "float32"), settings)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.02)
    model.save_pretrained(str(folder))
    stored = folder / ADAPTER_CONFIG
    _write_json(stored, model_settings(stored) | {"base_model_name_or_path": str(base), "revision": None})
    (folder / "README.md").unlink(missing_ok=True)
