"""Faults of a recipe's models, each planted alone, and the line that names it before an engine starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from dat_ray.config.models import SamplerConfig, TargetConfig
from dat_ray.engines.checks import check_engine
from dat_ray.errors import InputError
from tests.unit.models.hub_server import Hub, serving_hub
from tests.unit.models.published import write_checkpoint
from tests.unit.models.tiny import make_model, make_tokenizer, save_folder

INDEX = "model.safetensors.index.json"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("DAT_CACHE", str(tmp_path / "cache"))
    with serving_hub(monkeypatch, tmp_path / "hub-cache") as server:
        yield server


def sharded(folder: Path) -> Path:
    tokenizer = make_tokenizer()
    save_folder(make_model(len(tokenizer)), tokenizer, folder, max_shard_size="60KB")
    assert (folder / INDEX).is_file()
    return folder


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def lfs_pointer(folder: Path) -> None:
    shards(folder)[0].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n")


def without_a_tensor(folder: Path) -> None:
    path = shards(folder)[0]
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path)


def broken_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message['nothing'].there }}{% endfor %}")


LOCAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (lambda folder: shards(folder)[-1].unlink(), "lacks model-0.* which its model.safetensors.index.json names"),
    "git-lfs pointer": (lfs_pointer, "is a pointer of git-lfs"),
    "shard without a tensor": (without_a_tensor, "which lacks it: download it again"),
    "cut short": (lambda folder: shards(folder)[0].write_bytes(shards(folder)[0].read_bytes()[:-9]), "is cut short"),
    "template": (broken_template, "its chat template fails"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
}


@pytest.mark.parametrize("fault", LOCAL)
def test_a_fault_in_a_folder_is_named_with_the_role_it_would_have_failed(fault: str, tmp_path: Path) -> None:
    folder, (spoil, message) = sharded(tmp_path / "model"), LOCAL[fault]
    config = TargetConfig(model=str(folder), backend="torch")
    facts = check_engine("evaluation.attacker", config)
    assert (facts.here, facts.weights) == (True, sum(path.stat().st_size for path in shards(folder)))
    spoil(folder)
    with pytest.raises(InputError, match=rf"^evaluation\.attacker\.model = .*{message}") as caught:
        check_engine("evaluation.attacker", config)
    assert "\n" not in str(caught.value)


HUB: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (lambda folder: shards(folder)[-1].unlink(), "lacks model-0.* on the hub"),
    "only pickles": (lambda folder: [path.rename(path.with_suffix(".bin")) for path in shards(folder)], "no safetensors weights"),
    "too little": (lfs_pointer, "bytes of shards, and its model.safetensors.index.json speaks of"),
}


@pytest.mark.parametrize("fault", HUB)
def test_a_fault_on_the_hub_is_named_without_a_download_of_weights(fault: str, hub: Hub, tmp_path: Path) -> None:
    folder, (spoil, message) = sharded(tmp_path / "model"), HUB[fault]
    config = TargetConfig(model="owner/model", backend="torch")
    hub.add("owner/model", folder)
    facts = check_engine("judge.reader", config)
    assert (facts.here, facts.weights) == (False, sum(path.stat().st_size for path in shards(folder)))
    assert facts.detail.endswith("to be downloaded, LlamaForCausalLM, license mit")
    assert not [path for path in hub.asked if path.endswith(".safetensors")]
    spoil(folder)
    hub.repositories["owner/model"].commits.clear()
    hub.add("owner/model", sharded_copy(folder, tmp_path / "spoilt"))
    with pytest.raises(InputError, match=rf"^judge\.reader\.model = 'owner/model': .*{message}") as caught:
        check_engine("judge.reader", config)
    assert "\n" not in str(caught.value)


def sharded_copy(folder: Path, copy: Path) -> Path:
    """The same files as another commit."""
    return folder.rename(copy)


def test_what_the_hub_does_not_give_is_one_line_for_every_role(hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/gated", sharded(tmp_path / "model"), gated=True)
    reader, sampler = TargetConfig(model="owner/gated", backend="torch"), SamplerConfig(model="owner/gated", backend="torch")
    for section, config in (("judge.reader", reader), ("evaluation.heldout_sampler", sampler)):
        with pytest.raises(InputError, match=rf"^{section}\.model = 'owner/gated': is gated.*accept its license") as caught:
            check_engine(section, config)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"no such model at .*, or a private one"):
        check_engine("target", TargetConfig(model="owner/absent", backend="torch"))
    with pytest.raises(InputError, match="is not a folder"):
        check_engine("target", TargetConfig(model="./no/where", backend="torch"))


@pytest.mark.parametrize("granted", [True, False])
def test_a_gated_model_says_whether_this_account_may_have_it(granted: bool, hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/gated", sharded(tmp_path / "model"), gated=True)
    hub.repositories["owner/gated"].granted = granted
    config = TargetConfig(model="owner/gated", backend="torch")
    if granted:
        assert check_engine("target", config).detail.endswith("license mit, gated and granted")
    else:
        with pytest.raises(InputError, match="is gated, and this account may not download it"):
            check_engine("target", config)


def test_without_a_network_by_choice_a_model_must_be_in_the_cache(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("owner/model", sharded(tmp_path / "model"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"^target\.model = 'owner/model': is not in this machine's cache.*OFFLINE is set"):
        check_engine("target", TargetConfig(model="owner/model", backend="torch"))


def test_a_chat_model_in_place_of_a_sampler_is_refused_by_its_configuration(hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/chat", sharded(tmp_path / "model"))
    with pytest.raises(InputError, match=r"^evaluation\.heldout_sampler\.model = 'owner/chat'"):
        check_engine("evaluation.heldout_sampler", SamplerConfig(model="owner/chat", backend="torch"))


def test_an_index_that_says_nothing_of_bytes_is_taken_by_its_shards(hub: Hub, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({"weight_map": index["weight_map"]}))
    hub.add("owner/model", folder)
    assert check_engine("target", TargetConfig(model="owner/model", backend="torch")).weights > 0


def test_a_sampler_in_shards_on_the_hub_is_summed_by_its_index(hub: Hub, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "LLaDA-8B-Base", "llada")
    hub.add("GSAI-ML/LLaDA-8B-Base", tmp_path / "LLaDA-8B-Base")
    facts = check_engine("sampler", SamplerConfig(model="GSAI-ML/LLaDA-8B-Base", backend="torch"))
    assert facts.weights == sum(path.stat().st_size for path in shards(tmp_path / "LLaDA-8B-Base"))
    assert not [path for path in hub.asked if path.endswith(".safetensors")]
