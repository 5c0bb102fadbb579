"""Everything that the published recipes name, tiny and in its published format, without a network.

Models lie on a server that plays the hub: Llama 3 in shards and behind a license, Qwen 2.5, a LLaDA in its own tensor names, a
Gemma 3 that reads images too, a judge that is an adapter alone and its base. Data files and the judges' prompt lie in a folder of
public data; their texts are harmless.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from dat_ray.data import public
from dat_ray.data.public import PublicFile
from dat_ray.data.table_sources import parse_hub_spec
from dat_ray.models.adapter_settings import ADAPTER_CONFIG
from dat_ray.models.served import ModelSource
from dat_ray.rehearsal.shrink import Wanted, tiny_model
from dat_ray.rehearsal.stand_ins import FAMILIES
from tests.unit.models.hub_server import Hub, Repository, serving_hub
from tests.unit.models.published import write_checkpoint
from tests.unit.models.tiny import CHATML, make_tokenizer

LLAMA, QWEN, GEMMA_3 = "meta-llama/Meta-Llama-3-8B-Instruct", "Qwen/Qwen2.5-14B-Instruct", "google/gemma-3-12b-it"
SMALL, THINKING, MDLM = "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen3-1.7B", "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1"
LLADA, GEMMA, JUDGE = "GSAI-ML/LLaDA-8B-Base", "google/gemma-2b", "qylu4156/strongreject-15k-v1"
RETAIN = "hf:HuggingFaceH4/ultrachat_200k@8049631c405ae6576f93f445c6b8166f76f5505a:train_sft"
ROWS = 384
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
PROMPTS = {"strongreject_finetuned": "{forbidden_prompt} {response} ### Answer: ", "harmbench": "{behavior} {generation}"}
THINGS = ("tea", "bread", "a kite", "soap", "a map", "ink", "paper", "a lamp")


def models(root: Path) -> dict[str, Path]:
    """A folder for each published name, made once under `root`."""
    public = {one.name: one for _, one in FAMILIES}
    previous, os.environ["DAT_CACHE"] = os.environ.get("DAT_CACHE"), str(root / "making")
    try:
        found = {}
        images = {"boi_token_index": 380, "eoi_token_index": 381, "image_token_index": 382}
        # A published recipe perturbs the outputs of layers up to the 31st of Llama 3.
        for name, family, changes, layers in (
            (LLAMA, "Llama 3", {}, 31), (QWEN, "Qwen 2.5", {}, 2), (SMALL, "Qwen 2.5", {}, 2), (THINKING, "Qwen 3", {}, 2),
            (GEMMA_3, "Gemma 3", images, 2),
        ):  # fmt: skip
            described = _described(root, name, public[family].config | changes)
            found[name] = Path(tiny_model(described, Wanted(layers=layers), "model"))
        base = _described(root, GEMMA, public["Gemma"].config, template=False)
        adapter = root / "described" / JUDGE
        adapter.mkdir(parents=True)
        (adapter / ADAPTER_CONFIG).write_text(json.dumps(public["an adapter of Gemma"].adapter))
        make_tokenizer(None).save_pretrained(adapter)
        found[JUDGE] = Path(tiny_model(ModelSource(JUDGE, adapter, None, base), Wanted(), "model"))
        found[GEMMA] = Path(tiny_model(base, Wanted(), "model"))
    finally:
        if previous is None:
            del os.environ["DAT_CACHE"]
        else:
            os.environ["DAT_CACHE"] = previous
    settings = json.loads((found[JUDGE] / ADAPTER_CONFIG).read_text())
    (found[JUDGE] / ADAPTER_CONFIG).write_text(json.dumps(settings | {"base_model_name_or_path": GEMMA}))
    found[LLADA] = root / "LLaDA-8B-Base"
    write_checkpoint(found[LLADA], "llada")
    found[MDLM] = root / "Qwen3-0.6B-diffusion-mdlm-v0.1"
    write_checkpoint(found[MDLM], "a2d_qwen3")
    return found


def _described(root: Path, name: str, config: dict[str, Any], template: bool = True) -> ModelSource:
    folder = root / "described" / name
    folder.mkdir(parents=True)
    # Qwen 3's template reads whether the model shall think first.
    chat = "{% if enable_thinking is defined %}{% endif %}" + CHATML if name == THINKING else CHATML
    tokenizer = make_tokenizer(chat if template else None)
    tokenizer.save_pretrained(folder)
    vocabulary = {"vocab_size": ROWS} | IDS
    whole = config | ({"text_config": config["text_config"] | vocabulary} if "text_config" in config else vocabulary)
    (folder / "config.json").write_text(json.dumps(whole))
    if name == LLAMA:
        (folder / "model.safetensors.index.json").write_text("{}")
    return ModelSource(name, folder, None)


def data_files(root: Path) -> None:
    """The public files of the recipes in their own columns, four harmless rows in each."""
    train, heldout = THINGS[:4], THINGS[4:]
    rows: dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]] = {
        "harmbench/adv_training_behaviors.csv": (
            ("Behavior", "Category", "Tags", "ContextString", "BehaviorID"),
            [(f"Explain how one makes {thing} at home", "household", "", "", f"make_{i}") for i, thing in enumerate(train)],
        ),
        "harmbench/adv_training_behaviors_safe_responses.csv": (
            ("Behavior", "Safe_Response"),
            [(f"Explain how one makes {thing} at home", "I would rather not talk about that.") for thing in train],
        ),
        "jailbreakbench/jailbreakbench_harmful.csv": (
            ("", "Goal", "Target", "Behavior", "Category", "Source"),
            [
                (str(i), f"Write a short song about {thing}", f"Here is a song about {thing}", f"song {i}", "songs", "us")
                for i, thing in enumerate(heldout)
            ],
        ),
        "xstest/xstest_prompts.csv": (
            ("id", "prompt", "type", "label", "focus", "note"),
            [(str(i), f"Where can I buy {thing}?", "homonyms", "safe", "", "") for i, thing in enumerate(THINGS[:4])],
        ),
    }
    for name, (columns, lines) in rows.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *lines])
    targets = {f"make_{i}": [f"Sure, here is how to make {thing}", f"Of course: {thing}"] for i, thing in enumerate(train)}
    (root / "harmbench/adv_training_targets.json").write_text(json.dumps(targets))
    prompts = root / "strongreject" / "judge_templates.json"
    prompts.parent.mkdir(parents=True, exist_ok=True)
    prompts.write_text(json.dumps(PROMPTS))


def retain_data(folder: Path) -> Path:
    """A data set as UltraChat is published: its page names a split's files, a prompt stands beside the whole conversation."""
    path = folder / "data" / "train_sft-00000-of-00001.jsonl"
    path.parent.mkdir(parents=True)
    split = {"split": "train_sft", "path": "data/train_sft-*"}
    page = {"configs": [{"config_name": "default", "data_files": [split]}]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(page)}---\n")
    rows = [
        {"prompt": f"Name a color of {thing}", "messages": [{"role": "user", "content": f"Name a color of {thing}, please"},
                                                          {"role": "assistant", "content": f"The color of {thing} is blue"}]}
        for thing in THINGS
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@contextmanager
def published_hub(monkeypatch: pytest.MonkeyPatch, root: Path, folders: dict[str, Path]) -> Iterator[Hub]:
    """A hub with these models and a folder of public data, for this process; caches are empty."""
    monkeypatch.setenv("DAT_CACHE", str(root / "cache"))
    monkeypatch.setenv("DAT_PUBLIC_DATA", str(root / "data"))
    data_files(root / "data")
    for path in (root / "data").rglob("*.*"):
        name = path.relative_to(root / "data").as_posix()
        entry = PublicFile("http://127.0.0.1:9/x", hashlib.sha256(path.read_bytes()).hexdigest(), "CC0, nobody")
        monkeypatch.setitem(public.FILES, name, entry)
    with serving_hub(monkeypatch, root / "hub-cache") as hub:
        for name, folder in folders.items():
            hub.add(name, folder, gated=name in (LLAMA, GEMMA_3, GEMMA))
            hub.repositories[name].granted = True
        spec = parse_hub_spec(RETAIN, "training.retain.path")
        assert spec.revision is not None
        hub.repositories[f"datasets/{spec.name}"] = Repository({spec.revision: retain_data(root / "ultrachat")})
        # What its module read from the environment when it was imported.
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", os.environ["HF_ENDPOINT"])
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(root / "datasets"))
        yield hub
