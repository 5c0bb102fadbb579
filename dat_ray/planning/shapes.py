"""The shapes of a recipe's models: from a config.json, or, for models that recipes of this package name, from their public one.

The table answers without a network. Another hub model's config.json is fetched, a few KB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dat_ray.errors import InputError
from dat_ray.models.families import recognize
from dat_ray.models.served import CONFIG, find_source
from dat_ray.models.weight_files import check_layers
from dat_ray.training.memory import LLAMA3_8B, QWEN25_14B, LlamaShape

_SMOLLM2 = LlamaShape(30, 576, 1536, 192, 49_152, tied=True)
_GEMMA_2B = LlamaShape(18, 2048, 16_384, 256, 256_000, tied=True)

# Hub ids and embedded names -> their public config.json's sizes.
KNOWN: dict[str, LlamaShape] = {
    "embedded:smollm2-135m-instruct": _SMOLLM2,
    "embedded:smollm2-135m-infill": _SMOLLM2,
    "meta-llama/Meta-Llama-3-8B-Instruct": LLAMA3_8B,
    "Qwen/Qwen2.5-14B-Instruct": QWEN25_14B,
    "Qwen/Qwen2.5-1.5B-Instruct": LlamaShape(28, 1536, 8960, 256, 151_936, tied=True),
    "Qwen/Qwen3-1.7B": LlamaShape(28, 2048, 6144, 1024, 151_936, tied=True),
    "Qwen/Qwen3-4B-Instruct-2507": LlamaShape(36, 2560, 9728, 1024, 151_936, tied=True, queries=4096),
    "GSAI-ML/LLaDA-8B-Base": LlamaShape(32, 4096, 12_288, 4096, 126_464),
    "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1": LlamaShape(28, 1024, 3072, 1024, 151_936, tied=True, queries=2048),
    "google/gemma-2b": _GEMMA_2B,
    # A LoRA adapter of gemma-2b, which is merged.
    "qylu4156/strongreject-15k-v1": _GEMMA_2B,
    # Its language model; the part that sees is not loaded.
    "google/gemma-3-12b-it": LlamaShape(48, 3840, 15_360, 2048, 262_208, tied=True, queries=4096),
}


@dataclass(frozen=True)
class ModelShape:
    """A model as its cost sees it.

    Attributes:
        active: what a token goes through.
        stored: parameters that lie in memory: more than that in a mixture of experts.
    """

    active: LlamaShape
    stored: int


def model_shape(spec: str, field: str, revision: str = "main") -> ModelShape:
    """The shape of what a recipe names.

    Args:
        spec: `embedded:NAME`, a folder or a hub id, of a model or an adapter.
        field: recipe field to name in an error.
        revision: of a hub id.

    Raises:
        InputError: a model that cannot be had, or whose config.json has other names than a decoder's.
    """
    known = KNOWN.get(spec)
    if known is not None and not Path(spec).is_dir():
        return ModelShape(known, known.parameters)
    source = find_source(spec, field, revision, weights=False)
    folder = (source.base or source).folder
    config = check_layers(str(folder), field)
    if not {"hidden_size", "num_hidden_layers"} <= set(config.get("text_config") or config):
        # The last part of a name tells families apart; of a folder's weights nothing is asked here.
        config = recognize(config, Path(spec).name, field).config
    return shape_of_config(config.get("text_config") or config, str(folder / CONFIG), field)


class UnknownSizes(InputError):
    """A model that can be used and cannot be planned with."""


def shape_of_config(config: Mapping[str, Any], name: str, field: str) -> ModelShape:
    """The shape that a decoder's config.json describes.

    Args:
        config: its content.
        name: of the file, for messages.
        field: recipe field to name in an error.

    Raises:
        UnknownSizes: a size is missing.
    """
    try:
        layers, width, heads = config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"]
        head = config.get("head_dim") or width // heads
        keys = head * (config.get("num_key_value_heads") or heads)
        tied = bool(config.get("tie_word_embeddings", False))
        experts = config.get("num_experts") or config.get("num_local_experts")
        # Mixtral and OLMoE call an expert's width as others call that of a layer without experts.
        inner = (config.get("moe_intermediate_size") if experts else None) or config["intermediate_size"]
        hidden = inner * config["num_experts_per_tok"] if experts else inner
        shape = LlamaShape(layers, width, hidden, keys, config["vocab_size"], tied, head * heads)
        spare = experts * inner - hidden if experts else 0
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise UnknownSizes(
            field, name, f"does not describe a decoder's sizes ({error}): plan with another model's name"
        ) from error
    return ModelShape(shape, shape.parameters + 3 * layers * width * spare)
