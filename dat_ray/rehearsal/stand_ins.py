"""What a model that cannot be had is rehearsed with: its family's public configuration, with another model's tokenizer.

For a license that is not accepted yet, or a machine without a network. Sizes and options are those of the public config.json
files; the tokenizer and the chat template are those of SmolLM2, which come with a Python package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dat_ray.cache import cache_root
from dat_ray.data.ids import row_id
from dat_ray.errors import InputError
from dat_ray.models.adapter_settings import ADAPTER_CONFIG
from dat_ray.models.embedded import resolve_model
from dat_ray.models.folders import build_once
from dat_ray.models.served import ModelSource

TOKENIZER = "embedded:smollm2-135m-instruct"
# Raise it when a folder made by an older version of this code must not be used any more.
VERSION = "1"

_LLAMA_3 = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
_QWEN_2_5 = {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 5120, "intermediate_size": 13824,
    "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "use_sliding_window": False,
}  # fmt: skip
_GEMMA = {
    "model_type": "gemma", "architectures": ["GemmaForCausalLM"], "hidden_size": 2048, "intermediate_size": 16384,
    "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip
_GEMMA_3 = {
    "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "mm_tokens_per_image": 256,
    "torch_dtype": "bfloat16",
    "text_config": {
        "model_type": "gemma3_text", "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "sliding_window": 1024,
    },
    "vision_config": {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
        "num_attention_heads": 16, "image_size": 896, "patch_size": 14, "vision_use_head": False,
    },
}  # fmt: skip
_LLADA = {
    "model_type": "llada", "architectures": ["LLaDAModelLM"], "d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32,
    "mlp_hidden_size": 12288, "max_sequence_length": 4096, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
    "weight_tying": False, "torch_dtype": "bfloat16",
}  # fmt: skip
_QWEN_3 = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 2048, "intermediate_size": 6144,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "use_sliding_window": False,
}  # fmt: skip
_A2D_QWEN_3 = _QWEN_3 | {"model_type": "a2d-qwen3", "architectures": ["A2DQwen3LMHeadModel"], "hidden_size": 1024,
                         "intermediate_size": 3072, "hidden_act": "silu", "attention_bias": False}  # fmt: skip
_STRONGREJECT_LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16,
                      "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "google/gemma-2b"}  # fmt: skip


@dataclass(frozen=True)
class Public:
    """What is publicly known of a family.

    Attributes:
        name: of the family, for people.
        config: its config.json without vocabulary and special ids.
        adapter: of an adapter its adapter_config.json; `config` is its base's.
    """

    name: str
    config: dict[str, Any]
    adapter: dict[str, Any] | None = None


# A pattern of the names that a family's models have -> what is known of it; the first that fits counts.
FAMILIES: tuple[tuple[str, Public], ...] = (
    (r"llama-3", Public("Llama 3", _LLAMA_3)),
    (r"qwen2\.5", Public("Qwen 2.5", _QWEN_2_5)),
    (r"qwen3-[\w.]+-diffusion-mdlm", Public("A2D Qwen 3", _A2D_QWEN_3)),
    (r"qwen3-[\d.]+b", Public("Qwen 3", _QWEN_3)),
    (r"gemma-3", Public("Gemma 3", _GEMMA_3)),
    (r"gemma-2b|gemma-7b", Public("Gemma", _GEMMA)),
    (r"llada-8b|llada-1\.5", Public("LLaDA", _LLADA)),
    (r"strongreject-15k", Public("an adapter of Gemma", _GEMMA, _STRONGREJECT_LORA)),
)


def family_of(spec: str) -> Public | None:
    """What is known of a model's family, by its name; None where nothing is."""
    return next((public for pattern, public in FAMILIES if re.search(pattern, spec, re.IGNORECASE)), None)


def stand_in(spec: str, public: Public, options: Iterable[str] = ()) -> ModelSource:
    """A description in the cache of this machine, as a download without weights would have left one.

    Args:
        spec: name of the model that cannot be had.
        public: of its family.
        options: variables that a recipe sets in the family's chat template: the other one mentions them, and writes nothing.

    Raises:
        InputError: the package with the tokenizer is not installed.
    """
    try:
        tokenizer = Path(resolve_model(TOKENIZER))
    except InputError as error:
        raise InputError("model", spec, f"cannot be had, and its stand-in needs a tokenizer: {error.remedy}") from error
    mentioned = "".join(f"{{% if {name} is defined %}}{{% endif %}}" for name in sorted(options))
    key = {"version": VERSION, "config": json.dumps(public.config), "tokenizer": tokenizer.name, "mentioned": mentioned}
    folder = cache_root().absolute() / "rehearsal" / "stand-ins" / row_id(public.name, *key.values())

    def build(scratch: Path) -> None:
        from dat_ray.models.loading import load_tokenizer

        words = load_tokenizer(str(tokenizer))
        assert isinstance(words.chat_template, str)
        words.chat_template = mentioned + words.chat_template
        words.save_pretrained(scratch)
        (scratch / "config.json").write_text(json.dumps(_with_vocabulary(public.config, tokenizer)), encoding="utf-8")
        if public.adapter is not None:
            (scratch / "adapter").mkdir()
            (scratch / "adapter" / ADAPTER_CONFIG).write_text(json.dumps(public.adapter), encoding="utf-8")

    build_once(folder, key, build)
    whole = ModelSource(spec, folder, None)
    if public.adapter is None:
        return whole
    return ModelSource(spec, folder / "adapter", None, ModelSource(str(public.adapter["base_model_name_or_path"]), folder, None))


def _with_vocabulary(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration with the vocabulary and special ids of another tokenizer."""
    from dat_ray.models.loading import load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    size = len(tokenizer)
    rows = -(-(size + 8) // 64) * 64
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if "text_config" in config:
        images = {"boi_token_index": size, "eoi_token_index": size + 1, "image_token_index": size + 2}
        return config | images | {"text_config": config["text_config"] | {"vocab_size": rows} | ids}
    if config["model_type"] in ("llada", "a2d-qwen3"):
        # A row that no text has masks.
        return config | ids | {"vocab_size": rows, "embedding_size": rows, "mask_token_id": size}
    return config | ids | {"vocab_size": rows}
