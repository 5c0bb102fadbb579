"""Every published recipe against a server that plays the hub: its models under their published names, tiny."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dat_ray.config.loading import list_recipes, load_recipe
from dat_ray.data import public
from dat_ray.data.public import PublicFile
from dat_ray.engines.checks import check_engines
from dat_ray.errors import InputError
from dat_ray.pipeline.stages import check_target
from tests.unit.models.hub_server import Hub, serving_hub
from tests.unit.models.published import TINY
from tests.unit.models.test_served import ADAPTER, BASE, adapter_folder, base_folder
from tests.unit.models.tiny import CHATML, make_model, make_tokenizer, save_folder

PUBLISHED = [name for name in list_recipes() if name != "demo"]
CHAT_MODELS = (
    *("meta-llama/Meta-Llama-3-8B-Instruct", "Qwen/Qwen2.5-14B-Instruct", "google/gemma-3-12b-it"),
    "Qwen/Qwen2.5-1.5B-Instruct",
)
# Its template reads whether the model shall think first.
THINKING = "{% if enable_thinking is defined %}{% endif %}" + CHATML
PROMPTS = {"strongreject_finetuned": "{forbidden_prompt} {response} ### Answer: ", "harmbench": "{behavior} {generation}"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("DAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DAT_PUBLIC_DATA", str(tmp_path / "data"))
    content = json.dumps(PROMPTS).encode()
    place = tmp_path / "data" / "strongreject" / "judge_templates.json"
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    entry = PublicFile("http://127.0.0.1:9/x", hashlib.sha256(content).hexdigest(), "CC0, nobody")
    monkeypatch.setitem(public.FILES, "strongreject/judge_templates.json", entry)
    tokenizer = make_tokenizer()
    chat = Path(save_folder(make_model(len(tokenizer)), tokenizer, tmp_path / "chat"))
    # A published recipe perturbs the outputs of layers up to the 31st of Llama 3.
    config = json.loads((chat / "config.json").read_text())
    (chat / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 31}))
    sampler = tmp_path / "sampler"
    sampler.mkdir()
    llada = {"model_type": "llada", "architectures": ["LLaDAModelLM"], "d_model": 32, "n_layers": 1, "n_heads": 2,
             "n_kv_heads": 2, "mlp_hidden_size": 48, "vocab_size": 400, "embedding_size": 400, "mask_token_id": 399,
             "max_sequence_length": 256, "rope_theta": 1e4, "rms_norm_eps": 1e-5, "weight_tying": False}  # fmt: skip
    (sampler / "config.json").write_text(json.dumps(llada))
    (sampler / "model.safetensors").write_bytes((chat / "model.safetensors").read_bytes())
    with serving_hub(monkeypatch, tmp_path / "hub-cache") as server:
        for name in CHAT_MODELS:
            server.add(name, chat)
        thinking = make_tokenizer(THINKING)
        server.add("Qwen/Qwen3-1.7B", Path(save_folder(make_model(len(thinking)), thinking, tmp_path / "thinking")))
        small = tmp_path / "small-sampler"
        shutil.copytree(chat, small)
        (small / "config.json").write_text(json.dumps(TINY["a2d_qwen3"] | {"mask_token_id": 3}))
        server.add("dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1", small)
        server.add("GSAI-ML/LLaDA-8B-Base", sampler)
        base = base_folder(tmp_path / "base")
        server.add(BASE, base)
        server.add(ADAPTER, adapter_folder(tmp_path / "adapter", base))
        yield server


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_passes_its_checks_without_a_download_of_weights(name: str, hub: Hub) -> None:
    recipe = load_recipe(name)
    sections = {facts.section for facts in check_engines(recipe)}
    assert sections == set(recipe.engines()) >= {"sampler", "target", "judge.reader"}
    check_target(recipe)
    assert not [path for path in hub.asked if path.endswith(".safetensors")]


def test_what_a_published_recipe_lacks_is_named_by_its_field(hub: Hub, tmp_path: Path) -> None:
    recipe = load_recipe("dat-llama3-8b")
    hub.repositories["google/gemma-3-12b-it"].gated = True
    with pytest.raises(InputError, match=r"^evaluation\.attacker\.model = 'google/gemma-3-12b-it': is gated"):
        list(check_engines(recipe))
    hub.repositories["google/gemma-3-12b-it"].gated = False
    del hub.repositories[BASE]
    with pytest.raises(InputError, match=rf"^judge\.reader\.model = '{ADAPTER}': is an adapter of {BASE}: .*no such model"):
        list(check_engines(recipe))
    hub.add(BASE, tmp_path / "base")
    (tmp_path / "data" / "strongreject" / "judge_templates.json").unlink()
    with pytest.raises(InputError, match=r"^judge\.prompt_path = .*judge_templates.json is missing: put the file there"):
        list(check_engines(recipe))
