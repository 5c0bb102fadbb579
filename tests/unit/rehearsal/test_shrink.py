"""A tiny double keeps what its original is: architecture, tokenizer, special ids, tied embeddings, file format."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from dat_ray.models.adapter_settings import ADAPTER_CONFIG
from dat_ray.models.loading import load_causal_lm, load_tokenizer
from dat_ray.models.samplers import resolve_sampler
from dat_ray.models.served import ModelSource, find_source, served_model
from dat_ray.models.weight_files import INDEX, check_stored, weight_files
from dat_ray.rehearsal import stand_ins
from dat_ray.rehearsal.shrink import Wanted, shrunk, tiny_model
from dat_ray.rehearsal.stand_ins import FAMILIES, family_of
from tests.unit.layouts.builders import LAYOUTS, build
from tests.unit.models import published
from tests.unit.models.published import A2D_QWEN3, DREAM_7B, ILLADA_8B, LLADA_8B, LLADA_MOE_7B, write_tokenizer
from tests.unit.models.tiny import make_model, make_tokenizer, save_folder

PUBLIC = {public.name: public for _, public in FAMILIES}
ROWS = 384


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAT_CACHE", str(tmp_path / "cache"))


def description(folder: Path, config: dict[str, Any], mask: str = "", family: str = "llada") -> ModelSource:
    """What a download without weights leaves: the real configuration, with a vocabulary of the tests."""
    folder.mkdir(parents=True)
    if mask:
        write_tokenizer(folder, mask, family)
    else:
        make_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return ModelSource(str(folder), folder, None)


SMALLER = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1,
           "intermediate_size": 96}  # fmt: skip


@pytest.mark.parametrize("name", ["Llama 3", "Qwen 2.5", "Gemma"])
def test_a_double_of_a_published_target_or_reader_differs_in_sizes_alone(name: str, tmp_path: Path) -> None:
    public = PUBLIC[name].config | {"vocab_size": ROWS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    source = description(tmp_path / "the-model-it", public)
    folder = Path(tiny_model(source, Wanted(), "target.model"))
    assert folder.name == "the-model-it"
    found = json.loads((folder / "config.json").read_text())
    assert {key: value for key, value in found.items() if key not in {*SMALLER, "head_dim"}} == {
        key: value for key, value in public.items() if key not in {*SMALLER, "head_dim"}
    }
    assert {key: found[key] for key in SMALLER} == SMALLER
    model, config = load_causal_lm(str(folder), "float32"), AutoConfig.from_pretrained(folder)
    assert type(model).__name__ == public["architectures"][0]
    assert (config.eos_token_id, config.head_dim if name == "Gemma" else 32) == (2, 32)
    tied = model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert tied == public["tie_word_embeddings"]
    assert sum(path.stat().st_size for path in weight_files(str(folder))) < 1 << 20
    before, after = load_tokenizer(str(source.folder)), load_tokenizer(str(folder))
    assert after("How are you <|im_end|>?").input_ids == before("How are you <|im_end|>?").input_ids
    assert after.chat_template == before.chat_template


@pytest.mark.parametrize("layout", {layout.model_type: name for name, layout in LAYOUTS.items()}.values())
def test_every_layout_that_is_known_has_a_double_that_loads(layout: str, tmp_path: Path) -> None:
    original = Path(build(layout, tmp_path / layout))
    public = json.loads((original / "config.json").read_text())
    folder = Path(tiny_model(ModelSource(str(original), original, None), Wanted(layers=2), "target.model"))
    assert load_causal_lm(str(folder), "float32").config.model_type == public["model_type"]
    assert check_stored(str(folder)) > 0
    # These are as small as a double from the start, but for the width of an expert.
    found = json.loads((folder / "config.json").read_text())
    assert {key for key in public if found[key] != public[key]} <= {"moe_intermediate_size"}


def test_an_attacker_that_sees_keeps_its_two_parts_and_both_kinds_of_attention(tmp_path: Path) -> None:
    public = PUBLIC["Gemma 3"].config
    ids = {"vocab_size": ROWS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    images = {"boi_token_index": 380, "eoi_token_index": 381, "image_token_index": 382}
    source = description(tmp_path / "gemma-3-12b-it", public | images | {"text_config": public["text_config"] | ids})
    folder = tiny_model(source, Wanted(), "evaluation.attacker.model")
    model = load_causal_lm(folder, "float32")
    assert type(model).__name__ == "Gemma3ForConditionalGeneration"
    text = model.config.get_text_config()
    assert (text.layer_types, text.sliding_window, text.head_dim) == (["sliding_attention", "full_attention"], 1024, 32)
    names = [name for name, _ in model.named_parameters()]
    assert any("vision_tower" in name for name in names)


FAMILIES_OF_SAMPLERS = {
    "LLaDA-8B-Base": (LLADA_8B | {"vocab_size": ROWS, "embedding_size": ROWS}, "<|mdm_mask|>", "model.transformer.wte.weight"),
    "iLLaDA-8B-Base": (ILLADA_8B | {"vocab_size": ROWS}, "<[MASK]>", "model.embed_tokens.weight"),
    "LLaDA-MoE-7B-A1B-Base": (LLADA_MOE_7B | {"vocab_size": ROWS}, "<|mask|>", "model.layers.1.mlp.experts.3.up_proj.weight"),
    "Dream-v0-Base-7B": (DREAM_7B | {"vocab_size": ROWS}, "<|mask|>", "model.layers.1.self_attn.q_proj.bias"),
    "RND1-Base-0910": (published.RND1_30B | {"vocab_size": ROWS}, "<|mask|>", "model.layers.1.mlp.experts.3.up_proj.weight"),
    "dQwen3-1.7B-Base": (published.DQWEN3_1B | {"vocab_size": ROWS}, "<|fim_middle|>", "model.layers.0.self_attn.q_norm.weight"),
    "Qwen3-0.6B-diffusion-mdlm": (A2D_QWEN3 | {"vocab_size": ROWS}, "<|mask|>", "model.layers.0.self_attn.q_norm.weight"),
}


@pytest.mark.parametrize("name", FAMILIES_OF_SAMPLERS)
def test_a_sampler_keeps_its_published_format_and_is_converted_like_the_original(name: str, tmp_path: Path) -> None:
    config, mask, tensor = FAMILIES_OF_SAMPLERS[name]
    config = {key: value for key, value in config.items() if not key.endswith("token_id")}
    source = description(tmp_path / name, config, mask, "dqwen3" if "dQwen3" in name else "llada")
    (source.folder / INDEX).write_text("{}")
    folder = Path(tiny_model(source, Wanted(sampler=True), "sampler.model"))
    shards = weight_files(str(folder))
    assert len(shards) == 2
    assert tensor in json.loads((folder / INDEX).read_text())["weight_map"]
    check_stored(str(folder))
    found = json.loads((folder / "config.json").read_text())
    assert (found["model_type"], found["architectures"]) == (config["model_type"], config["architectures"])
    ready = json.loads((Path(resolve_sampler(str(folder))) / "config.json").read_text())
    assert ready["dat_sampler"]["mask_token_id"] == load_tokenizer(str(folder)).convert_tokens_to_ids(mask)
    assert ready["dat_sampler"]["shift"] == int(name.startswith(("Dream", "RND1", "dQwen3")))


def test_an_adapter_stays_an_adapter_of_its_tiny_base(tmp_path: Path) -> None:
    public = PUBLIC["an adapter of Gemma"]
    base = description(tmp_path / "gemma-2b", public.config | {"vocab_size": ROWS, "eos_token_id": 2, "bos_token_id": 1,
                                                               "pad_token_id": 2})  # fmt: skip
    adapter = tmp_path / "strongreject"
    adapter.mkdir()
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(public.adapter))
    make_tokenizer("{{ messages[0]['content'] }}").save_pretrained(adapter)
    folder = tiny_model(ModelSource("qylu4156/strongreject-15k-v1", adapter, None, base), Wanted(), "judge.reader.model")
    source = find_source(folder, "judge.reader.model")
    assert source.base is not None
    assert Path(source.base.spec).name == "gemma-2b"
    settings = json.loads((Path(folder) / ADAPTER_CONFIG).read_text())
    assert (sorted(settings["target_modules"]), settings["r"], settings["lora_alpha"]) == (["q_proj", "v_proj"], 4, 16)
    assert load_tokenizer(served_model(folder)).chat_template == "{{ messages[0]['content'] }}"


def test_weights_in_pieces_stay_in_pieces_and_layers_that_are_named_are_there(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    original = tmp_path / "model"
    save_folder(make_model(len(tokenizer)), tokenizer, original, max_shard_size="60KB")
    config = json.loads((original / "config.json").read_text()) | {"num_hidden_layers": 40}
    (original / "config.json").write_text(json.dumps(config))
    source = ModelSource(str(original), original, None)
    first = tiny_model(source, Wanted(layers=7), "target.model")
    assert len(weight_files(first)) > 1
    assert load_causal_lm(first, "float32").config.num_hidden_layers == 7
    assert tiny_model(source, Wanted(layers=7), "target.model") == first
    shutil.rmtree(first)
    assert tiny_model(source, Wanted(), "target.model") != first


def test_kinds_of_layers_all_stay_and_lists_follow() -> None:
    config = {"num_hidden_layers": 6, "layer_types": ["a", "a", "b", "a", "c", "a"], "mlp_only_layers": [0, 2, 5],
              "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128,
              "rope_scaling": {"type": "longrope", "short_factor": list(range(64)), "factor": 4}}  # fmt: skip
    small = shrunk(config)
    assert (small["num_hidden_layers"], small["layer_types"], small["mlp_only_layers"]) == (3, ["a", "b", "c"], [0, 1])
    assert small["num_key_value_heads"] == 2
    assert small["rope_scaling"] == {"type": "longrope", "short_factor": list(range(16)), "factor": 4}
    assert shrunk(config, layers=4)["layer_types"] == ["a", "a", "b", "c"]
    assert shrunk(config, layers=99)["num_hidden_layers"] == 6


def test_families_are_known_by_the_names_of_their_models() -> None:
    names = {"meta-llama/Meta-Llama-3-8B-Instruct": "Llama 3", "Qwen/Qwen2.5-14B-Instruct": "Qwen 2.5",
             "google/gemma-3-12b-it": "Gemma 3", "google/gemma-2b": "Gemma", "GSAI-ML/LLaDA-8B-Base": "LLaDA",
             "qylu4156/strongreject-15k-v1": "an adapter of Gemma", "Qwen/Qwen3-1.7B": "Qwen 3",
             "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1": "A2D Qwen 3"}  # fmt: skip
    for spec, name in names.items():
        found = family_of(spec)
        assert found is not None
        assert found.name == name
    assert family_of("owner/unheard-of") is None


def test_what_a_double_writes_is_words(tmp_path: Path) -> None:
    public = PUBLIC["Llama 3"].config | {"vocab_size": ROWS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    folder = tiny_model(description(tmp_path / "model", public), Wanted(), "target.model")
    tokenizer = load_tokenizer(folder)
    model = load_causal_lm(folder, "float32")
    ids = tokenizer(["How are you today?", "The quick brown fox"], return_tensors="pt", padding=True, padding_side="left")
    written = model.generate(**ids, max_new_tokens=12, do_sample=False)[:, ids.input_ids.shape[1] :]
    texts = tokenizer.batch_decode(written)
    assert all(re.fullmatch("[a-z ]+", text) for text in texts)
    # It depends on the text, and goes on.
    assert texts[0] != texts[1]
    assert len(set(written[0].tolist())) > 1


def test_a_stand_in_is_made_small_like_any_model_and_knows_the_options_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tokenizer().save_pretrained(tmp_path / "smollm")
    monkeypatch.setattr(stand_ins, "TOKENIZER", str(tmp_path / "smollm"))
    for _, public in FAMILIES:
        sampler = public.config["model_type"] in ("llada", "a2d-qwen3")
        source = stand_ins.stand_in("owner/model-base", public, ["enable_thinking"])
        folder = tiny_model(source, Wanted(sampler=sampler), "model")
        whole = resolve_sampler(folder) if sampler else served_model(folder)
        assert "enable_thinking" in load_tokenizer(whole).chat_template
        assert check_stored(whole) < 4 << 20
