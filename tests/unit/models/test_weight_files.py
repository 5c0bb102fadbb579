"""Which files are the weights: held against what transformers' own `from_pretrained` loads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from dat_ray.config.training import LoraConfig
from dat_ray.errors import InputError
from dat_ray.models import loading
from dat_ray.models.adapters import attach_lora, check_lora_targets, save_adapter
from dat_ray.models.families import recognize
from dat_ray.models.loading import load_causal_lm, model_fingerprint
from dat_ray.models.merging import merge_adapter
from dat_ray.models.weight_files import refuse_quantized, stored_tensors, weight_files
from tests.unit.models import published
from tests.unit.models.tiny import make_model, save_folder

INDEX = "model.safetensors.index.json"


@pytest.fixture
def single(base_folder: str, tmp_path: Path) -> Path:
    shutil.copytree(base_folder, tmp_path / "single")
    return tmp_path / "single"


@pytest.fixture
def sharded(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    return Path(save_folder(make_model(len(tokenizer)), tokenizer, tmp_path / "sharded", max_shard_size="100KB"))


def other_weights(folder: Path, name: str) -> None:
    """The folder's model with other numbers, in a file of that name."""
    first = weight_files(str(folder))[0]
    save_file({key: w + 1 for key, w in load_file(first).items()}, folder / name, metadata={"format": "pt"})


def test_the_files_of_a_sane_folder_are_those_that_transformers_loads(single: Path, sharded: Path) -> None:
    assert [path.name for path in weight_files(str(single))] == ["model.safetensors"]
    named = set(json.loads((sharded / INDEX).read_text())["weight_map"].values())
    assert len(named) > 1
    assert {path.name for path in weight_files(str(sharded))} == named
    for folder in (single, sharded):
        loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        stored = {name: tensor for path in weight_files(str(folder)) for name, tensor in load_file(path).items()}
        assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())
        assert {name: shape for name, (_, shape) in stored_tensors(str(folder)).items()} == {
            name: tuple(tensor.shape) for name, tensor in stored.items()
        }


def test_a_single_file_that_an_index_names_is_no_contradiction(single: Path) -> None:
    names = load_file(single / "model.safetensors")
    (single / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}))
    assert [path.name for path in weight_files(str(single))] == ["model.safetensors"]


@pytest.mark.parametrize("leftover", ["model.fp16.safetensors", "model-00001-of-00002.safetensors", "consolidated.safetensors"])
def test_what_lies_beside_a_single_file_is_refused(single: Path, leftover: str) -> None:
    """transformers ignores it, vLLM loads it too."""
    before = model_fingerprint(str(single))
    other_weights(single, leftover)
    for reads in (weight_files, model_fingerprint, lambda folder: load_causal_lm(folder, "float32", "model")):
        with pytest.raises(InputError, match=rf"holds {leftover} beside model\.safetensors.*: remove one") as caught:
            reads(str(single))
        assert "\n" not in str(caught.value)
    (single / leftover).unlink()
    assert model_fingerprint(str(single)) == before


@pytest.mark.parametrize("leftover", ["model-00007-of-00009.safetensors", "model.bf16-00001-of-00002.safetensors"])
def test_shards_that_no_index_names_are_refused(sharded: Path, leftover: str) -> None:
    other_weights(sharded, leftover)
    with pytest.raises(InputError, match=f"holds {leftover} beside the shards of {INDEX}"):
        weight_files(str(sharded))


def test_a_file_that_neither_loader_opens_is_left_alone(sharded: Path) -> None:
    """Some hubs have the weights in the maker's own format beside the shards; with an index nobody loads it."""
    found = weight_files(str(sharded))
    other_weights(sharded, "consolidated.safetensors")
    assert weight_files(str(sharded)) == found


def test_one_file_and_the_shards_of_another_model_are_refused_at_the_start_of_a_run(sharded: Path) -> None:
    """The loaders differ: transformers takes the file, vLLM the shards; a merge of the shards would export the file."""
    other_weights(sharded, "model.safetensors")
    with pytest.raises(InputError, match=r"target\.model = .*transformers loads the first, vLLM the second"):
        weight_files(str(sharded), "target.model")
    with pytest.raises(InputError, match=r"holds both model\.safetensors and"):
        check_lora_targets(str(sharded), LoraConfig())


def test_missing_shards_and_indexes_of_elsewhere_are_named(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    last = max(index["weight_map"].values())
    (sharded / last).rename(sharded / "kept")
    with pytest.raises(InputError, match=f"lacks {last}, which its {INDEX} names"):
        weight_files(str(sharded))
    (sharded / "kept").rename(sharded / last)
    maps: list[Any] = [{"w": "../outside.safetensors"}, {"w": "/etc/passwd"}, {}, {"w": 3}, []]
    for names in maps:
        (sharded / INDEX).write_text(json.dumps({"weight_map": names}))
        with pytest.raises(InputError, match="is no index of files of this folder"):
            weight_files(str(sharded))
    (sharded / INDEX).write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        weight_files(str(sharded))
    (sharded / INDEX).unlink()
    with pytest.raises(InputError, match=rf"neither model\.safetensors nor {INDEX}"):
        weight_files(str(sharded))


def test_an_adapter_beside_the_weights_and_renamed_weights_are_refused(single: Path) -> None:
    (single / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="move the adapter to a folder of its own"):
        weight_files(str(single))
    (single / "adapter_config.json").unlink()
    config = json.loads((single / "config.json").read_text())
    (single / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    with pytest.raises(InputError, match="transformers_weights"):
        weight_files(str(single))


def test_a_hub_repository_with_an_adapter_is_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would load the base that the adapter names, and the adapter on top, of whatever kind."""
    monkeypatch.setattr(loading, "find_adapter_config_file", lambda path: f"cache/{path}/adapter_config.json")
    with pytest.raises(InputError, match=r"target\.model = 'org/pissa-adapter': holds an adapter"):
        load_causal_lm("org/pissa-adapter", "float32", "target.model")


def test_the_driver_can_ask_without_torch() -> None:
    code = "import sys, dat_ray.models.weight_files, dat_ray.models.adapter_settings; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def set_config(folder: Path, **entries: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


QUANTIZED: dict[str, tuple[Callable[[Path], object], str]] = {
    **{
        method: (partial(set_config, quantization_config={"quant_method": method}), f"quantization_config of {method}")
        for method in ("fp8", "compressed-tensors", "bitsandbytes", "gptq", "awq", "mxfp4", "a-later-method")
    },
    "old compressed-tensors": (lambda f: set_config(f, compression_config={"format": "x"}), "compression_config"),
    "in a part": (lambda f: set_config(f, text_config={"quantization_config": {"quant_method": "fp8"}}), "quantization_config"),
    "old gptq": (lambda f: (f / "quantize_config.json").write_text("{}"), r"quantize_config\.json"),
    "modelopt": (lambda f: (f / "hf_quant_config.json").write_text("{}"), r"hf_quant_config\.json"),
    "fp8 and scales": (lambda f: store(f, torch.float8_e4m3fn), r"model\.layers\.0\.\S+ in F8_E4M3"),
    "int8": (lambda f: store(f, torch.int8), r"\S+ in I8"),
}  # fmt: skip


def store(folder: Path, dtype: torch.dtype) -> None:
    path = folder / "model.safetensors"
    save_file({n: w.to(dtype) if w.ndim == 2 and "proj" in n else w for n, w in load_file(path).items()}, path)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_quantized_base_is_refused_by_targets_merge_and_conversion(single: Path, tmp_path: Path, kind: str) -> None:
    quantize, sign = QUANTIZED[kind]
    adapted = attach_lora(load_causal_lm(str(single), "float32"), LoraConfig(rank=2), 0)
    quantize(single)
    save_adapter(adapted, str(tmp_path / "adapter"), model_fingerprint(str(single)))
    config = json.loads((single / "config.json").read_text())
    for refuses in (
        lambda: refuse_quantized(str(single), config),
        lambda: merge_adapter(str(single), str(tmp_path / "adapter"), str(tmp_path / "merged")),
        lambda: check_lora_targets(str(single), LoraConfig()),
        lambda: recognize(published.LLADA_8B | config | {"architectures": ["LLaDAModelLM"]}, str(single)),
    ):
        with pytest.raises(InputError, match=rf"is quantized \({sign}.*use the model in bfloat16, float16 or float32") as caught:
            refuses()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "merged").exists()


def test_buffers_of_whole_numbers_are_no_quantization_and_keep_their_type(single: Path, tmp_path: Path) -> None:
    path = single / "model.safetensors"
    mask = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    save_file(load_file(path) | {"model.layers.0.self_attn.bias_mask": mask}, path, metadata={"format": "pt"})
    refuse_quantized(str(single), {})
    adapted = attach_lora(load_causal_lm(str(single), "float32"), LoraConfig(rank=2), 0)
    save_adapter(adapted, str(tmp_path / "adapter"), model_fingerprint(str(single)))
    merged = load_file(Path(merge_adapter(str(single), str(tmp_path / "adapter"), str(tmp_path / "out"), "bfloat16")) / path.name)
    assert merged.pop("model.layers.0.self_attn.bias_mask").dtype == torch.uint8
    assert {weight.dtype for weight in merged.values()} == {torch.bfloat16}


HUB = """
import json, sys
from pathlib import Path
from dat_ray.errors import InputError
from dat_ray.models.loading import load_causal_lm, model_files, model_fingerprint
from dat_ray.models.merging import merge_adapter

adapter, out = sys.argv[1:]
print(model_files("org/tiny").name)


def merge(name):
    record = {"format_version": 1, "base_fingerprint": model_fingerprint(name)}
    Path(adapter, "dat_adapter.json").write_text(json.dumps(record))
    merge_adapter(name, adapter, f"{out}-{Path(name).name}")

merge("org/tiny")
for action, name in (
    (merge, "org/codes"),
    (merge, "org/leftover"),
    (lambda name: load_causal_lm(name, "float32"), "org/both"),
    (model_files, "org/absent"),
):
    try:
        action(name)
    except InputError as error:
        print(str(error).splitlines())
"""


@pytest.mark.slow
def test_hub_models_are_held_to_the_same_rules(single: Path, tmp_path: Path) -> None:
    """In the layout of the hub's cache, without a network."""
    adapted = attach_lora(load_causal_lm(str(single), "float32"), LoraConfig(rank=2), 0)
    for parameter in adapted.parameters():
        parameter.data += 0.1
    save_adapter(adapted, str(tmp_path / "adapter"), model_fingerprint(str(single)))

    def cached(name: str) -> Path:
        root = tmp_path / "hub" / f"models--org--{name}"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text("0" * 40)
        return Path(shutil.copytree(single, root / "snapshots" / ("0" * 40)))

    cached("tiny")
    store(cached("codes"), torch.float8_e4m3fn)
    other_weights(cached("leftover"), "model.fp16.safetensors")
    shutil.copyfile(tmp_path / "adapter" / "adapter_config.json", cached("both") / "adapter_config.json")
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    arguments = [sys.executable, "-c", HUB, str(tmp_path / "adapter"), str(tmp_path / "merged")]
    said = subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
    assert said[0] == "0" * 40
    signs = ("is quantized (model.layers", "holds model.fp16.safetensors beside", "holds an adapter", "HF_HUB_OFFLINE is set")
    assert len(said) == 5, said
    for line, sign in zip(said[1:], signs, strict=True):
        assert sign in line, line
    (tmp_path / "adapter" / "dat_adapter.json").write_text(json.dumps({"base_fingerprint": model_fingerprint(str(single))}))
    local = merge_adapter(str(single), str(tmp_path / "adapter"), str(tmp_path / "local"))
    expected = load_file(Path(local) / "model.safetensors")
    assert all(torch.equal(w, expected[name]) for name, w in load_file(tmp_path / "merged-tiny" / "model.safetensors").items())
