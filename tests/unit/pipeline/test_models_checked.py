"""What is refused before a run directory is made, an engine started or a row sampled."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from peft import LoraConfig as PeftLora
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from dat_ray.cli import main
from dat_ray.config.loading import fingerprint, load_recipe
from dat_ray.config.schema import Recipe
from dat_ray.data.behaviors import load_behaviors
from dat_ray.data.rundir import RunDir, open_run
from dat_ray.data.shards import write_file, write_manifest
from dat_ray.diffusion.canvas import SamplerSpec
from dat_ray.engines import vllm_plugin
from dat_ray.engines.factory import build_target
from dat_ray.errors import InputError
from dat_ray.evaluation import stage as evaluating
from dat_ray.generation import stage as generating
from dat_ray.models.loading import load_causal_lm, model_fingerprint
from dat_ray.ops.doctor import diagnose
from dat_ray.pipeline import stages
from dat_ray.pipeline.evaluations import compare
from dat_ray.pipeline.export import export_run
from dat_ray.pipeline.stages import check_inputs
from dat_ray.training.trained import trained_files
from tests.unit.pipeline.tiny_adaptation import tiny_chat_model

BEFORE, BETWEEN = (1, 5), (2, 1)


def sampler_folder(folder: Path, layout: str = "llama") -> str:
    tiny_chat_model(folder, layout)
    SamplerSpec(341, 1, (341,), "chat", BEFORE, BETWEEN).write(folder)
    return str(folder)


def make_recipe(tmp_path: Path, target: str, *settings: str) -> Recipe:
    sampler = tmp_path / "sampler"
    if not sampler.exists():
        sampler_folder(sampler)
    return load_recipe("demo", [f"target.model={target}", f"sampler.model={sampler}", "training.retain.path=builtin:demo-retain",
                                *settings])  # fmt: skip


def adapter_folder(folder: Path, base: str, **options: object) -> str:
    settings = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options
    get_peft_model(load_causal_lm(base, "float32"), PeftLora(**settings)).save_pretrained(str(folder))
    (folder / "dat_adapter.json").write_text(json.dumps({"base_fingerprint": model_fingerprint(base)}))
    return str(folder)


def refuses(message: str, action: Callable[..., object], *arguments: object, **options: object) -> None:
    with pytest.raises(InputError, match=message) as caught:
        action(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_targets_that_cannot_be_adapted_are_refused_where_a_run_trains(tmp_path: Path) -> None:
    dense, experts = tiny_chat_model(tmp_path / "dense", "llama"), tiny_chat_model(tmp_path / "experts", "qwen3_moe")
    check_inputs(make_recipe(tmp_path, dense))
    refuses(r"training\.lora\.targets = 'all-linear': adapts .*experts", check_inputs, make_recipe(tmp_path, experts))
    check_inputs(make_recipe(tmp_path, experts, "training.lora.targets=[q_proj]"))
    check_inputs(make_recipe(tmp_path, experts), trains=False)
    refuses("embed_tokens", check_inputs, make_recipe(tmp_path, dense, "training.lora.targets=[embed_tokens]"))
    set_config(tmp_path / "dense", quantization_config={"quant_method": "fp8"})
    refuses(r"target\.model = .* is quantized", check_inputs, make_recipe(tmp_path, dense))


def test_a_training_by_itself_refuses_such_a_target_before_it_asks_it_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that began with `dat generate` has never been asked whether it trains."""
    monkeypatch.setattr("dat_ray.training.retain_set.prepare_retain", lambda *_: pytest.fail("answers were written"))
    recipe = make_recipe(tmp_path, tiny_chat_model(tmp_path / "experts", "qwen3_moe"))
    refuses(r"training\.lora\.targets = 'all-linear': adapts .*experts", stages._train, 0, recipe, RunDir(str(tmp_path / "run")))


# Behind a response it writes a line break, and no token.
ENDLESS = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("wrong", "right", "others", "message", "finding"),
    [
        (
            "training.attack.layers=[embedding, 1, 2]",
            "training.attack.layers=[embedding, 1]",
            "training.attack.unit=absolute",
            r"training\.attack\.layers = 2: the model has layers 0 to 1",
            "attacked layers",
        ),
        (
            "training.max_tokens=9",
            "training.max_tokens=99",
            "seed=0",
            r"training\.max_tokens = 9: with this chat template it must be at least \d\d",
            "training rows",
        ),
        (
            "training.end_of_turn=retain",
            "training.end_of_turn=none",
            f"target.chat_template={json.dumps(ENDLESS)}",
            r"training\.end_of_turn = .*: the target's chat template ends a response with no special token",
            "training rows",
        ),
    ],
    ids=["a layer", "the length of a row", "an end of turn"],
)
def test_what_a_training_asks_of_its_target_is_looked_at_before_a_row_is_sampled(
    wrong: str, right: str, others: str, message: str, finding: str, tmp_path: Path
) -> None:
    target = tiny_chat_model(tmp_path / "target", "llama")
    recipe = make_recipe(tmp_path, target, others, wrong)
    refuses(message, check_inputs, recipe)
    check_inputs(recipe, trains=False)
    found = {check.name: check for check in diagnose(recipe)}
    assert not found[finding].ok
    assert re.search(message, found[finding].detail)
    check_inputs(make_recipe(tmp_path, target, others, right))


def test_the_command_refuses_them_before_it_makes_a_run_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experts = tiny_chat_model(tmp_path / "experts", "mixtral")
    sampler = sampler_folder(tmp_path / "sampler")
    settings = ["--set", f"target.model={experts}", "--set", f"sampler.model={sampler}"]
    assert main(["run", "demo", "--run-dir", str(tmp_path / "run"), *settings]) == 2
    assert "training.lora.targets = 'all-linear'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_doctor_says_so_too(tmp_path: Path) -> None:
    experts = tiny_chat_model(tmp_path / "experts", "qwen3_moe")
    found = {check.name: check for check in diagnose(make_recipe(tmp_path, experts))}
    assert not found["LoRA targets"].ok
    assert "adapts" in found["LoRA targets"].detail
    other = make_recipe(tmp_path, experts, "training.lora.targets=[q_proj,o_proj]")
    assert {check.name: check.ok for check in diagnose(other)}["LoRA targets"]


@pytest.mark.parametrize("role", ["target", "sampler"])
def test_leftover_weights_of_any_role_are_refused(role: str, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, tiny_chat_model(tmp_path / "target", "llama"))
    folder = tmp_path / role
    save_file(load_file(folder / "model.safetensors"), folder / "model.fp16.safetensors")
    refuses(rf"{role}\.model = .* holds model\.fp16\.safetensors", check_inputs, recipe)
    found = {check.name: check for check in diagnose(recipe)}
    assert "holds model.fp16.safetensors" in found[f"{role} model"].detail


@pytest.mark.parametrize("role", ["judge.reader", "evaluation.second_judge.reader", "evaluation.attacker"])
def test_leftover_weights_of_a_reader_or_an_attacker_are_refused(role: str, tmp_path: Path) -> None:
    target, other = tiny_chat_model(tmp_path / "target", "llama"), tiny_chat_model(tmp_path / "other", "llama")
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "other" / "model-00001-of-00001.safetensors")
    judge = [f"{role.removesuffix('.reader')}.name=strongreject-rubric"] if role.endswith("reader") else []
    recipe = make_recipe(tmp_path, target, *judge, f"{role}.model={other}")
    refuses(rf"{role}\.model = .* neither model\.safetensors nor", check_inputs, recipe)


def test_a_sampler_that_vllm_does_not_know_is_refused(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, tiny_chat_model(tmp_path / "target", "llama"))
    set_config(tmp_path / "sampler", architectures=["DatMaskedMistral"])
    assert recipe.sampler.backend == "vllm"
    refuses(r"sampler\.model = .* is a DatMaskedMistral, and backend vllm knows DatMaskedLlama", check_inputs, recipe)
    check_inputs(make_recipe(tmp_path, str(tmp_path / "target"), "sampler.backend=torch"))
    for name in vllm_plugin.ARCHITECTURES:
        set_config(tmp_path / "sampler", architectures=[name])
        vllm_plugin.check_architecture(str(tmp_path / "sampler"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "has use_dora = true, only plain LoRA"),
        ({"init_lora_weights": "olora"}, 'has init_lora_weights = "olora", only plain LoRA'),
        ({"trainable_token_indices": [4]}, "has trainable_token_indices"),
    ],
)
def test_adapters_are_refused_before_anything_is_sampled_or_asked(
    options: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_chat_model(tmp_path / "target", "llama")
    recipe = make_recipe(tmp_path, base)
    run = begun(recipe, tmp_path / "run")
    adapter = adapter_folder(tmp_path / "adapter", base, **options)
    monkeypatch.setattr(generating, "_make_rows", lambda *_: pytest.fail("rows were made"))
    monkeypatch.setattr(evaluating, "Suite", lambda *_: pytest.fail("models were asked"))
    refuses(f"adapter = .* {message}", generating.generate, recipe, run, adapter=adapter)
    refuses(f"--models = .* {message}", compare, recipe, run, f"plain=base,theirs={adapter}", None)


def test_an_adapter_of_another_model_is_refused_before_the_first_model_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, other = tiny_chat_model(tmp_path / "target", "llama"), tiny_chat_model(tmp_path / "other", "qwen2")
    recipe = make_recipe(tmp_path, base)
    run = begun(recipe, tmp_path / "run")
    monkeypatch.setattr(evaluating, "Suite", lambda *_: pytest.fail("models were asked"))
    adapter = adapter_folder(tmp_path / "adapter", other)
    refuses("--models = .* adapter of another base model", compare, recipe, run, f"plain=base,theirs={adapter}", None)
    refuses("adapter = .* adapter of another base model", generating.generate, recipe, run, adapter=adapter)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: set_config(folder, quantization_config={"quant_method": "bitsandbytes"}), "is quantized"),
        (lambda folder: save_file(load_file(folder / "model.safetensors"), folder / "model.ema.safetensors"), "holds model.ema"),
    ],
)
def test_an_export_of_what_nobody_would_load_is_refused(spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    base = tiny_chat_model(tmp_path / "target", "llama")
    recipe = make_recipe(tmp_path, base)
    run = begun(recipe, tmp_path / "run")
    folder = Path(adapter_folder(Path(run.adapter(0)), base))
    write_manifest(run.training(0), trained_files(run.training(0)), fingerprint(recipe))
    export_run(run.root, str(tmp_path / "whole"))
    spoil(tmp_path / "target")
    with suppress(InputError):  # a fingerprint of what is left over there is refused as well
        (folder / "dat_adapter.json").write_text(json.dumps({"base_fingerprint": model_fingerprint(base)}))
    write_manifest(run.training(0), trained_files(run.training(0)), fingerprint(recipe))
    refuses(message, export_run, run.root, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def set_config(folder: Path, **entries: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_server_takes_no_adapter(tmp_path: Path) -> None:
    endpoint = {"backend": "endpoint", "endpoint": {"url": "http://localhost:9"}, "model": "m"}
    config = type(load_recipe("demo").target).model_validate(endpoint)
    refuses("adapter = .*: a server takes no adapter: set target.backend to vllm or torch", build_target, config, 1, "folder")


def begun(recipe: Recipe, folder: Path) -> RunDir:
    run = open_run(str(folder), recipe, resume=False)
    write_file(run.behaviors, load_behaviors(recipe.behaviors).table)
    return run
