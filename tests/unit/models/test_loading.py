from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from dat_ray.config.training import LoraConfig
from dat_ray.errors import InputError
from dat_ray.models.adapters import attach_lora, load_adapter, save_adapter
from dat_ray.models.loading import load_causal_lm, load_tokenizer, model_fingerprint
from dat_ray.models.merging import cached_merge, merge_adapter, write_merged
from tests.unit.models.tiny import make_model, make_tokenizer, save_folder

LORA = LoraConfig(rank=4, alpha=8)
IDS = torch.arange(30)[None]


def adapter_state(model: peft.PeftModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def train_a_little(model: peft.PeftModel, seed: int = 5) -> peft.PeftModel:
    """Random values for every adapter parameter, so that the adapter does something."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model


@pytest.fixture
def adapter(base_folder: str, tmp_path: Path) -> str:
    model = train_a_little(attach_lora(load_causal_lm(base_folder, "float32"), LORA, seed=0))
    save_adapter(model, str(tmp_path / "adapter"), model_fingerprint(base_folder))
    return str(tmp_path / "adapter")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_load_causal_lm(base_folder: str, dtype: str) -> None:
    model = load_causal_lm(base_folder, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert not model.training
    assert model.name_or_path == base_folder


def test_load_tokenizer_always_pads(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_refuses_pickled_weights(base_folder: str, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(base_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / name)
    with pytest.raises(InputError, match=f"target.model = .*has {name} but no safetensors"):
        load_causal_lm(str(folder), "float32", field="target.model")


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-100],
        lambda whole: b"",
        lambda whole: b"<html>404</html>",
        lambda whole: b"\xff" * 8 + whole[8:],
        lambda whole: (1 << 44).to_bytes(8, "little") + whole[8:],
        lambda whole: bytes(len(whole)),
    ],
    ids=["cut", "empty", "page", "most bytes of all", "more than memory", "zeros"],
)
def test_damaged_weights_are_one_line(base_folder: str, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(base_folder, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(InputError, match=r"^target.model = .*model.safetensors': is cut short or no safetensors file"):
        load_causal_lm(str(folder), "float32", field="target.model")
    assert model_fingerprint(str(folder)) != model_fingerprint(base_folder)


def test_refuses_code_of_the_model_folder(base_folder: str, tmp_path: Path) -> None:
    folder = tmp_path / "custom"
    shutil.copytree(base_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="mine", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('ran the code of a model folder')")
    with pytest.raises(InputError, match="cannot be loaded as a causal LM"):
        load_causal_lm(str(folder), "float32")


def test_fingerprint_sees_weights_and_config_but_not_place(base_folder: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base_folder, copy)
    expected = model_fingerprint(base_folder)
    assert len(expected) == 16
    assert int(expected, 16) >= 0
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "transformers_version": "0.0", "_name_or_path": "/x"}))
    assert model_fingerprint(str(copy)) == expected
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert model_fingerprint(str(copy)) != expected
    (copy / "config.json").write_text(json.dumps(config))
    weights = load_file(copy / "model.safetensors")
    for name in (min(weights), max(weights)):
        changed = {key: w.clone() for key, w in weights.items()}
        changed[name].view(-1)[-1] += 1e-3
        save_file(changed, copy / "model.safetensors", metadata={"format": "pt"})
        assert model_fingerprint(str(copy)) != expected, name


def test_fingerprint_of_a_large_file_covers_both_ends(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = torch.zeros(1 << 20)  # 4 MiB
    seen = set()
    for index in (None, 0, -1):
        changed = weights.clone()
        if index is not None:
            changed[index] = 1
        save_file({"w": changed}, tmp_path / "model.safetensors")
        seen.add(model_fingerprint(str(tmp_path)))
    assert len(seen) == 3


def test_fingerprint_of_a_hub_id() -> None:
    assert model_fingerprint("owner/name") == model_fingerprint("owner/name", "main")
    assert model_fingerprint("owner/name") != model_fingerprint("owner/name", "v2")
    assert model_fingerprint("owner/name") != model_fingerprint("owner/other")


def test_attach_lora_is_seeded_by_its_argument_alone(base_folder: str) -> None:
    torch.manual_seed(1)
    first = adapter_state(attach_lora(load_causal_lm(base_folder, "float32"), LORA, seed=3))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = adapter_state(attach_lora(load_causal_lm(base_folder, "bfloat16"), LORA, seed=3))
    assert torch.equal(before, torch.get_rng_state())
    other = adapter_state(attach_lora(load_causal_lm(base_folder, "float32"), LORA, seed=4))
    assert first.keys() == second.keys() == other.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(first[name], other[name]) == (".lora_B." in name) for name in first)


def test_attach_lora_covers_all_linear_layers_in_float32_and_starts_at_the_base(base_folder: str) -> None:
    base = load_causal_lm(base_folder, "bfloat16")
    expected = base(IDS).logits
    model = attach_lora(base, LORA, seed=0)
    state = adapter_state(model)
    assert len(state) == 2 * 7 * 2  # layers x projections x (A, B)
    assert all(p.dtype == torch.float32 for p in state.values())
    assert all(p.shape[0 if ".lora_A." in name else 1] == 4 for name, p in state.items())
    assert all(p.eq(0).all() == (".lora_B." in name) for name, p in state.items())
    # Kaiming-uniform with a = sqrt(5): |A| <= 1 / sqrt(inputs), and nearly reaches it.
    a = next(p for name, p in state.items() if name.endswith("q_proj.lora_A.default.weight"))
    assert 0.9 / 64**0.5 < a.abs().max() <= 1 / 64**0.5
    assert torch.equal(model(IDS).logits, expected)


@pytest.mark.parametrize("trainable", [True, False])
def test_adapter_round_trip(base_folder: str, adapter: str, trainable: bool) -> None:
    trained = train_a_little(attach_lora(load_causal_lm(base_folder, "float32"), LORA, seed=0))
    loaded = load_adapter(load_causal_lm(base_folder, "float32"), adapter, trainable=trainable)
    assert torch.equal(trained.eval()(IDS).logits, loaded.eval()(IDS).logits)
    assert any(p.requires_grad for p in loaded.parameters()) == trainable


def test_stored_adapter_is_reproducible_and_names_no_path(base_folder: str, adapter: str, tmp_path: Path) -> None:
    model = load_adapter(load_causal_lm(base_folder, "float32"), adapter)
    save_adapter(model, str(tmp_path / "again"), model_fingerprint(base_folder))
    for name in ("adapter_model.safetensors", "adapter_config.json", "dat_adapter.json"):
        content = (tmp_path / "again" / name).read_bytes()
        assert content == (Path(adapter) / name).read_bytes()
        assert base_folder.encode() not in content


def test_adapter_of_another_base(base_folder: str, adapter: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    other = save_folder(make_model(len(tokenizer), seed=1), tokenizer, tmp_path / "other")
    with pytest.raises(InputError, match="adapter of another base model") as caught:
        load_adapter(load_causal_lm(other, "float32"), adapter)
    assert model_fingerprint(base_folder) in str(caught.value)
    assert model_fingerprint(other) in str(caught.value)
    with pytest.raises(InputError, match="adapter of another base model"):
        merge_adapter(other, adapter, str(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("missing", ["adapter_model.safetensors", "adapter_config.json", "dat_adapter.json"])
def test_incomplete_adapter(base_folder: str, adapter: str, missing: str) -> None:
    (Path(adapter) / missing).unlink()
    with pytest.raises(InputError, match=f"has no {missing}"):
        load_adapter(load_causal_lm(base_folder, "float32"), adapter)


def test_merge_equals_peft(base_folder: str, adapter: str, tmp_path: Path) -> None:
    model = load_adapter(load_causal_lm(base_folder, "float32"), adapter)
    expected = model(IDS).logits
    folder = merge_adapter(base_folder, adapter, str(tmp_path / "merged"))
    merged = load_causal_lm(folder, "float32")
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(load_causal_lm(base_folder, "float32")(IDS).logits, expected, atol=0.1)
    reference = dict(model.merge_and_unload().named_parameters())
    for name, weight in merged.named_parameters():
        torch.testing.assert_close(weight, reference[name], rtol=1e-6, atol=1e-7)
    assert load_tokenizer(folder)("How are you").input_ids == load_tokenizer(base_folder)("How are you").input_ids


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merge_dtype(base_folder: str, adapter: str, tmp_path: Path, dtype: str) -> None:
    folder = merge_adapter(base_folder, adapter, str(tmp_path / "merged"), dtype)
    weights = load_file(Path(folder) / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {getattr(torch, dtype)}
    assert json.loads((Path(folder) / "config.json").read_text())["dtype"] == dtype


def test_a_model_that_lies_beside_an_adapter_is_not_taken_for_its_merge(
    base_folder: str, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAT_CACHE", str(tmp_path / "cache"))
    planted = Path(merge_adapter(base_folder, adapter, f"{adapter}-merged"))
    weights = load_file(planted / "model.safetensors")
    save_file({name: tensor * 0 for name, tensor in weights.items()}, planted / "model.safetensors", {"format": "pt"})
    folder = cached_merge(base_folder, adapter)
    found = load_file(Path(folder) / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    assert Path(folder).is_relative_to(tmp_path / "cache" / "merged")
    inode = Path(folder).stat().st_ino
    assert cached_merge(base_folder, adapter) == folder
    assert Path(folder).stat().st_ino == inode
    assert cached_merge(base_folder, adapter, "bfloat16") != folder


def test_merge_does_nothing_when_complete_and_starts_again_for_another_adapter(
    base_folder: str, adapter: str, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    merge_adapter(base_folder, adapter, str(out))
    inode, content = out.stat().st_ino, (out / "model.safetensors").read_bytes()
    merge_adapter(base_folder, adapter, str(out))
    assert out.stat().st_ino == inode
    merge_adapter(base_folder, adapter, str(tmp_path / "second"))
    assert (tmp_path / "second" / "model.safetensors").read_bytes() == content
    model = train_a_little(attach_lora(load_causal_lm(base_folder, "float32"), LORA, seed=0), seed=6)
    save_adapter(model, adapter, model_fingerprint(base_folder))
    merge_adapter(base_folder, adapter, str(out))
    assert (out / "model.safetensors").read_bytes() != content


def test_merge_keeps_shards(base_folder: str, tokenizer: PreTrainedTokenizerFast, adapter: str, tmp_path: Path) -> None:
    sharded = save_folder(make_model(len(tokenizer)), tokenizer, tmp_path / "sharded", max_shard_size="100KB")
    record = Path(adapter) / "dat_adapter.json"
    record.write_text(json.dumps({"format_version": 1, "base_fingerprint": model_fingerprint(sharded)}))
    folder = Path(merge_adapter(sharded, adapter, str(tmp_path / "merged"), "bfloat16"))
    names = sorted(p.name for p in Path(sharded).glob("*.safetensors"))
    assert len(names) > 1
    assert sorted(p.name for p in folder.glob("*.safetensors")) == names
    one = tmp_path / "one"
    one.mkdir()
    record.write_text(json.dumps({"format_version": 1, "base_fingerprint": model_fingerprint(base_folder)}))
    write_merged(base_folder, adapter, one, dtype="bfloat16")
    expected = load_causal_lm(str(one), "bfloat16").state_dict()
    found = load_causal_lm(str(folder), "bfloat16").state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(w.nbytes for p in folder.glob("*.safetensors") for w in load_file(p).values())
