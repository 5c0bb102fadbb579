"""What a recipe may name in place of a whole model, against a server that plays the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GemmaConfig, GemmaForCausalLM

from dat_ray.config.loading import fingerprint, load_recipe
from dat_ray.config.models import JudgeConfig, TargetConfig
from dat_ray.data import public
from dat_ray.data.public import PublicFile
from dat_ray.data.rundir import RunDir, open_run
from dat_ray.engines.factory import build_judge
from dat_ray.engines.pinning import pinned, prompts_of
from dat_ray.errors import InputError
from dat_ray.evaluation.compared import named_models
from dat_ray.evaluation.stage import _check_weights
from dat_ray.models.identity import check_weights, models_of, weights_of
from dat_ray.models.loading import load_causal_lm, load_tokenizer
from dat_ray.models.served import served_model, tokenizer_folder
from tests.unit.models.hub_server import Hub, serving_hub
from tests.unit.models.tiny import make_tokenizer

BASE, ADAPTER = "google/gemma-2b", "qylu4156/strongreject-15k-v1"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("DAT_CACHE", str(tmp_path / "cache"))
    with serving_hub(monkeypatch, tmp_path / "hub-cache") as server:
        yield server


def base_folder(folder: Path, seed: int = 0) -> Path:
    """A tiny Gemma, whose tokenizer has no chat template, as that of a base model."""
    tokenizer = make_tokenizer(None)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = GemmaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                             num_attention_heads=2, num_key_value_heads=1, head_dim=16, eos_token_id=2, bos_token_id=1,
                             pad_token_id=2)  # fmt: skip
        GemmaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapter_folder(folder: Path, base: Path, name: str | None = BASE, tokenizer: bool = True) -> Path:
    """An adapter as PEFT leaves it: nothing of ours beside it."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = get_peft_model(load_causal_lm(str(base), "float32"), LoraConfig(r=2, target_modules=["q_proj", "down_proj"],
                                                                               task_type="CAUSAL_LM"))  # fmt: skip
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.3)
    model.save_pretrained(str(folder))
    settings = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": name}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    if tokenizer:
        make_tokenizer("{{ messages[0]['content'] }}").save_pretrained(folder)
    return folder


def published(hub: Hub, tmp_path: Path) -> tuple[str, str]:
    """Base and adapter on the hub; their commits."""
    base = base_folder(tmp_path / "base")
    return hub.add(BASE, base), hub.add(ADAPTER, adapter_folder(tmp_path / "adapter", base))


def test_an_adapter_of_the_hub_serves_merged_with_its_own_tokenizer(hub: Hub, tmp_path: Path) -> None:
    base_commit, commit = published(hub, tmp_path)
    folder = served_model(ADAPTER, "judge.reader.model")
    expected = PeftModel.from_pretrained(load_causal_lm(str(tmp_path / "base"), "float32"), str(tmp_path / "adapter"))
    ids = torch.tensor([[1, 5, 9, 20]])
    with torch.inference_mode():
        torch.testing.assert_close(load_causal_lm(folder, "float32")(ids).logits, expected(ids).logits, rtol=1e-4, atol=1e-5)
        base = load_causal_lm(str(tmp_path / "base"), "float32")(ids).logits
    assert not torch.allclose(base, expected(ids).logits, atol=1e-2), "the adapter changes the model"
    assert load_tokenizer(folder).chat_template == "{{ messages[0]['content'] }}"
    assert tokenizer_folder(ADAPTER).endswith(commit)
    assert not (Path(folder) / "adapter_config.json").exists()
    asked = len(hub.asked)
    assert served_model(ADAPTER, revision=f"{commit}+{base_commit}") == folder
    assert len(hub.asked) == asked, "commits that are in the cache ask the hub for nothing"
    assert weights_of(ADAPTER) == f"{commit}+{base_commit}"


def test_an_adapter_in_a_folder_is_merged_into_the_base_it_names(hub: Hub, tmp_path: Path) -> None:
    base_commit, _ = published(hub, tmp_path)
    local = adapter_folder(tmp_path / "local", tmp_path / "base", tokenizer=False)
    assert load_tokenizer(served_model(str(local))).chat_template is None
    assert tokenizer_folder(str(local)).endswith(base_commit)
    assert (weights_of(str(local)) or "").endswith(f"+{base_commit}")
    by_folder = adapter_folder(tmp_path / "by-folder", tmp_path / "base", name=str(tmp_path / "base"))
    assert Path(served_model(str(by_folder))).is_dir()
    [model] = named_models(load_recipe("demo"), f"theirs={local}")
    assert (model.adapter, model.source) == (None, str(local)), "it stands on its own base, not on the target"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "names no base model: put base_model_name_or_path there"),
        ("nobody/nothing", "is an adapter of nobody/nothing: nobody/nothing no such model"),
        ("/nowhere/base", "is an adapter of /nowhere/base, no folder on this machine"),
    ],
)
def test_an_adapter_without_its_base_is_one_line(hub: Hub, tmp_path: Path, name: str | None, message: str) -> None:
    folder = adapter_folder(tmp_path / "adapter", base_folder(tmp_path / "base"), name)
    with pytest.raises(InputError, match=f"judge.reader.model = .*{message}") as caught:
        served_model(str(folder), "judge.reader.model")
    assert "\n" not in str(caught.value)


def test_a_gated_base_is_named_with_what_to_do(hub: Hub, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    hub.add(BASE, base, gated=True)
    hub.add(ADAPTER, adapter_folder(tmp_path / "adapter", base))
    with pytest.raises(InputError, match=f"{ADAPTER}.* is an adapter of {BASE}: .* is gated.*accept its license") as caught:
        served_model(ADAPTER, "judge.reader.model")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="has no revision v9"):
        served_model(ADAPTER, revision="v9")


def recipe_of(*settings: str):
    reader = ["judge.name=strongreject-rubric", f"judge.reader.model={ADAPTER}", "judge.reader.backend=torch"]
    return load_recipe("demo", [*reader, *settings])


def test_a_branch_is_resolved_once_and_the_run_keeps_to_its_commit(hub: Hub, tmp_path: Path) -> None:
    base_commit, commit = published(hub, tmp_path)
    run, recipe = str(tmp_path / "run"), recipe_of()
    models = models_of(recipe, "judge.reader")
    assert check_weights(run, models) == {"judge.reader.model": f"{commit}+{base_commit}"}
    moved = hub.add(BASE, base_folder(tmp_path / "moved", seed=1))
    assert check_weights(run, models) == {"judge.reader.model": f"{commit}+{base_commit}"}
    kept = pinned(recipe, run, "judge")
    assert kept.judge.reader is not None
    assert kept.judge.reader.revision == f"{commit}+{base_commit}"
    assert fingerprint(kept) == fingerprint(recipe)
    assert pinned(kept, run, "judge") == kept
    # Another folder begins with what is the newest now, and who asks for another revision is told.
    reader = pinned(recipe, str(tmp_path / "other"), "judge").judge.reader
    assert reader is not None
    assert reader.revision == f"{commit}+{moved}"
    with pytest.raises(InputError, match=rf"has other weights \({commit}\+{moved}\)"):
        check_weights(run, models_of(recipe_of(f"judge.reader.revision=main+{moved}"), "judge.reader"))
    [model] = named_models(recipe, f"theirs={BASE}@{base_commit}")
    served = model.config(TargetConfig(model="any", backend="torch"))
    assert (served.model, served.revision) == (BASE, base_commit)


def test_compared_models_stay_at_the_commits_at_which_their_suite_began(hub: Hub, tmp_path: Path) -> None:
    base_commit, commit = published(hub, tmp_path)
    recipe = load_recipe("demo")
    run, named = RunDir(str(tmp_path / "run")), named_models(recipe, f"plain={BASE},tuned={ADAPTER},own=base")
    before = _check_weights(recipe, run, "comparison", named)[1]
    hub.add(BASE, base_folder(tmp_path / "moved", seed=1))
    after = _check_weights(recipe, run, "comparison", named)[1]
    assert before == after
    assert [model.config(recipe.target).revision for model in after] == [base_commit, f"{commit}+{base_commit}", "main"]
    assert [model.weights for model in after] == [model.weights for model in named], "ids of rows hold the name"


def test_a_run_of_another_target_is_served_on_the_commit_that_it_was_trained_at(hub: Hub, tmp_path: Path) -> None:
    base_commit, _ = published(hub, tmp_path)
    recipe = load_recipe("demo")
    trained = recipe.model_copy(update={"target": recipe.target.model_copy(update={"model": BASE})})
    run = open_run(str(tmp_path / "run"), trained, resume=False)
    check_weights(run.root, models_of(trained, "target"))
    adapter_folder(Path(run.adapter(0)), tmp_path / "base")
    hub.add(BASE, base_folder(tmp_path / "moved", seed=1))
    [model] = named_models(recipe, f"theirs={run.root}")
    assert model.source == f"{BASE}@{base_commit}"


def test_the_published_prompt_reaches_the_grader_to_the_letter(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the recipe as it is published: no path of a prompt, and an adapter as the reader."""
    published(hub, tmp_path)
    content = json.dumps({"strongreject_finetuned": "Grade {forbidden_prompt} by {response}.\n\n### Answer: ", "harmbench": "x"})
    place = tmp_path / "data" / "strongreject" / "judge_templates.json"
    place.parent.mkdir(parents=True)
    place.write_text(content)
    monkeypatch.setenv("DAT_PUBLIC_DATA", str(tmp_path / "data"))
    entry = PublicFile("http://127.0.0.1:9/x", hashlib.sha256(content.encode()).hexdigest(), "CC0, nobody")
    monkeypatch.setitem(public.FILES, "strongreject/judge_templates.json", entry)
    config = JudgeConfig.model_validate(
        {
            "name": "strongreject-finetuned",
            "reader": {"model": ADAPTER, "backend": "torch", "template": "none", "dtype": "float32"},
        }
    )
    judge: Any = build_judge(config)
    asked: list[str] = []
    reader = judge._reader
    logprob = reader.logprob

    def noted(prompts: list[str], grades: list[str]) -> list[float]:
        asked.extend(prompts)
        return logprob(prompts, grades)

    reader.logprob = noted
    [found] = judge.judge(["the goal"], ["p"], ["the answer"])
    assert 0.0 < (found.score or 0.0) < 1.0
    assert set(asked) == {"Grade the goal by the answer.\n\n### Answer: "}, "the space at its end is a token"
    place.write_text(content + " ")
    with pytest.raises(InputError, match=r"judge\.prompt_path = .*is not the published file"):
        build_judge(config)
    other = config.model_copy(update={"prompt_path": "public:strongreject/judge_templates.json#harm"})
    place.write_text(content)
    with pytest.raises(InputError, match=r"names no text of that file: .* one of strongreject_finetuned, harmbench"):
        build_judge(other)


def test_a_prompts_place_may_change_in_a_run_and_its_text_may_not(tmp_path: Path) -> None:
    """A file that is asked for can be given to a run that is there, and that file can move."""
    before = recipe_of()
    (tmp_path / "a.txt").write_text("{goal} {response}")
    (tmp_path / "b.txt").write_text("{goal} {response}")
    (tmp_path / "c.txt").write_text("{goal} and {response}")
    given = [recipe_of(f"judge.prompt_path={tmp_path / name}.txt") for name in "abc"]
    assert len({fingerprint(recipe) for recipe in (before, *given)}) == 1
    run = str(tmp_path / "run")
    for recipe in given[:2]:
        check_weights(run, {}, prompts_of(recipe, "judge"))
    with pytest.raises(InputError, match=r"judge\.prompt = .*is another text"):
        check_weights(run, {}, prompts_of(given[2], "judge"))
