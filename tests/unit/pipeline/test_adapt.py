"""`dat adapt` on tiny models of every layout, with a table of pairs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from dat_ray import cli
from dat_ray.config.adapt import SynthesisConfig, load_adapt_config
from dat_ray.config.models import SamplerConfig
from dat_ray.data.hold import LOCK
from dat_ray.diffusion.canvas import SamplerSpec
from dat_ray.engines.base import InfillRequest
from dat_ray.engines.factory import build_sampler
from dat_ray.engines.vllm_plugin import ARCHITECTURES as VLLM_ARCHITECTURES
from dat_ray.engines.vllm_plugin import check_architecture
from dat_ray.errors import DatError, InputError
from dat_ray.models.layouts import ARCHITECTURES
from dat_ray.pipeline import adapt as adapting
from dat_ray.pipeline.adapt import BEGUN, adapt_model, free_token
from dat_ray.pipeline.adapt_workers import adapt_worker
from dat_ray.progress import Progress
from tests.unit.diffusion.tiny import LETTERS, gapped_tokenizer
from tests.unit.models.tiny import make_tokenizer
from tests.unit.pipeline.tiny_adaptation import adapt_recipe, pairs_table, tiny_chat_model


@pytest.mark.parametrize(("layout", "method"), [("llama", "lora"), ("qwen2", "full"), ("qwen3", "lora"), ("qwen3_moe", "full")])
def test_a_chat_model_becomes_a_sampler(layout, method, tmp_path, capsys):
    base, table = tiny_chat_model(tmp_path / "base", layout), pairs_table(tmp_path / "table.csv")
    folder = adapt_model(base, str(tmp_path / "out"), adapt_recipe(method=method), pairs=table)
    spec = SamplerSpec.read(folder)
    assert spec.mask_token_id == len(make_tokenizer()), "a row past the tokenizer's last"
    assert (spec.shift, spec.layout) == (1, "chat")
    assert json.loads((folder / "config.json").read_text())["model_type"] == layout
    check_architecture(str(folder))
    assert "DatMasked" + ARCHITECTURES[layout].removesuffix("ForCausalLM") in VLLM_ARCHITECTURES
    config = SamplerConfig(model=str(folder), backend="torch", dtype="float32", layout="chat", prompt_tokens=(4,), steps=2)
    (written,) = build_sampler(config, threads=1).infill([InfillRequest("a", "Sure, here is the fox", 4, 1)])
    assert len(written.token_ids) == 4
    assert not set(spec.banned_token_ids) & set(written.token_ids)
    record = json.loads((tmp_path / "out" / "weights" / "record.json").read_text())
    assert record["heldout_after"]["own"] != record["heldout_before"]["own"]
    assert record["recipe"]["training"]["mask_token_id"] == spec.mask_token_id
    assert (tmp_path / "out" / "weights" / "adapter_model.safetensors").exists() == (method == "lora")
    said = capsys.readouterr().err
    assert "held-out prompts, before" in said
    assert "step 3: " in said
    assert f"sampler: {folder}" in said


def test_a_link_that_leads_out_of_a_resumed_folder_is_refused(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    out.mkdir()
    (out / "training").symlink_to(elsewhere)
    with pytest.raises(InputError, match=r"--out .*symbolic link that leads out of it, 'training'"):
        adapt_model(str(tmp_path / "no model"), str(out), adapt_recipe(), resume=True)
    assert list(elsewhere.iterdir()) == []
    assert [path.name for path in out.iterdir()] == ["training"]


def test_a_used_folder_is_refused_without_resume(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(InputError, match=r"--out .* add --resume"):
        adapt_model("nowhere", str(tmp_path / "out"), adapt_recipe())


LAYOUT = "BASE = .* is of layout {}, of which no sampler is known: use a model of layout llama, qwen2, qwen3 or qwen3_moe"


@pytest.mark.parametrize(
    ("layout", "method", "change", "message"),
    [
        *((layout, "lora", {}, LAYOUT.format(layout)) for layout in ("mistral", "gemma", "gemma2", "phi3", "gpt_neox", "olmo2")),
        ("mixtral", "full", {}, LAYOUT.format("mixtral")),
        ("qwen3_moe", "lora", {}, r"training\.method = 'lora': adapts .*experts.*: set it to full, with dtype float32"),
        ("llama", "lora", {"architectures": ["LlamaForSequenceClassification"]}, "use a causal chat model, a LlamaForCausalLM"),
        ("llama", "lora", {"architectures": ["DatMaskedLlama"]}, "names DatMaskedLlama in `architectures`"),
        ("llama", "full", {"architectures": None}, "names no class in `architectures`"),
        ("qwen2", "lora", {"use_sliding_window": True}, "use_sliding_window = True"),
        ("llama", "full", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("qwen3", "lora", {"quantization_config": {"quant_method": "gptq"}}, "BASE = .* is quantized"),
        ("qwen3", "full", {"quantization_config": {"quant_method": "awq"}}, "BASE = .* is quantized"),
    ],
)
@pytest.mark.parametrize("own_pairs", [True, False])
def test_a_base_that_becomes_no_sampler_is_refused_before_anything_is_made(
    layout, method, change, message, own_pairs, tmp_path, monkeypatch
):
    monkeypatch.setattr(adapting, "synthesize", lambda *_: pytest.fail("pairs were written"))
    base = tiny_chat_model(tmp_path / "base", layout)
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    pairs = None if own_pairs else pairs_table(tmp_path / "table.csv")
    with pytest.raises(InputError, match=message) as caught:
        adapt_model(base, str(tmp_path / "out"), adapt_recipe(method=method), pairs=pairs)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_leftover_weights_of_a_base_are_refused_before_anything_is_made(tmp_path):
    base = tiny_chat_model(tmp_path / "base", "llama")
    save_file(load_file(tmp_path / "base" / "model.safetensors"), tmp_path / "base" / "model.ema.safetensors")
    with pytest.raises(InputError, match=r"BASE = .* holds model\.ema\.safetensors"):
        adapt_model(base, str(tmp_path / "out"), adapt_recipe())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("mask", "message"), [(10_000, "is past the embedding's 341 rows"), (341, "is past"), (1, "is in the chat template")]
)
def test_a_mask_that_cannot_be_one_is_refused_before_anything_is_made(mask, message, tmp_path):
    base = tiny_chat_model(tmp_path / "base", "llama")
    with pytest.raises(InputError, match=rf"training\.mask_token_id = {mask}: {message}"):
        adapt_model(base, str(tmp_path / "out"), adapt_recipe(mask_token_id=mask))
    assert not (tmp_path / "out").exists()


def test_every_weight_is_not_trained_in_half_precision():
    with pytest.raises(InputError, match=r"small updates vanish in bfloat16: set dtype to float32, or training\.method to lora"):
        load_adapt_config("smollm2-135m-infill", ["training.method=full"])
    assert load_adapt_config("smollm2-135m-infill", ["training.method=full", "dtype=float32"]).dtype == "float32"
    with pytest.raises(InputError, match="vanish in bfloat16"):
        load_adapt_config("chat-infill", ["training.method=full", "dtype=bfloat16"])


def test_the_mask_where_ids_have_gaps():
    """The number of tokens is the id of a letter here."""
    gapped = gapped_tokenizer()
    last = max(gapped.get_vocab().values())
    assert gapped.convert_ids_to_tokens(len(gapped)) in LETTERS
    assert free_token(gapped, last + 3, "m") == last + 1, "a row past the last"
    assert free_token(gapped, last + 1, "m") == 4, "no such row: a gap"
    assert free_token(gapped, len(gapped), "m") == 4


def test_a_mask_token_past_the_embedding_is_not_taken():
    tokenizer = make_tokenizer()
    rows = len(tokenizer) + 2
    tokenizer.add_tokens([f"<extra {i}>" for i in range(4)])
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    assert tokenizer.mask_token_id >= rows
    with pytest.raises(InputError, match=r"training\.mask_token_id"):
        free_token(tokenizer, rows, "m")


def test_more_workers_than_rows_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"17 workers share 16 rows a step: lower trainer.min_actors or raise training.batch_size"
    ):
        load_adapt_config("smollm2-135m-infill", ["trainer.min_actors=17"])


def test_a_worker_that_does_not_see_the_folder_says_so_and_is_not_retried(tmp_path) -> None:
    settings = {"recipe": adapt_recipe().model_dump_json(), "root": str(tmp_path), "model": "none", "mark": "_shared-x"}
    error = adapt_worker(settings)
    assert isinstance(error, InputError)
    assert "does not see this folder: name one that all nodes share" in str(error)


@pytest.mark.slow
def test_an_adaptation_that_is_killed_goes_on_and_ends_with_the_same_weights(tmp_path):
    """The command itself, ended by SIGKILL once it has a checkpoint."""
    base, table = tiny_chat_model(tmp_path / "base", "llama"), pairs_table(tmp_path / "table.csv")
    # Far longer than the parent takes to see the first checkpoint.
    recipe = adapt_recipe(steps=80, checkpoint_every=1)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))

    def command(out: str) -> list[str]:
        return [sys.executable, "-m", "dat_ray.cli", "adapt", base, "--out", str(tmp_path / out), "--pairs", table,
                "--recipe", str(tmp_path / "recipe.yaml"), "--resume"]  # fmt: skip

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command("cut"), env=environment, stderr=subprocess.DEVNULL)
    checkpoints = tmp_path / "cut" / "training" / "checkpoints"
    deadline = time.monotonic() + 600
    while not [name for name in checkpoints.glob("step-*") if name.name.removeprefix("step-").isdigit()]:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "cut" / "sampler").exists()
    threads = torch.get_num_threads()
    cut = adapt_model(base, str(tmp_path / "cut"), recipe, pairs=table, resume=True)
    whole = adapt_model(base, str(tmp_path / "whole"), recipe, pairs=table)
    torch.set_num_threads(threads)
    for name, tensor in load_file(whole / "model.safetensors").items():
        assert torch.equal(tensor, load_file(cut / "model.safetensors")[name]), name
    lines = (tmp_path / "cut" / "training" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 81))


def test_the_mask_is_a_token_that_no_text_uses():
    tokenizer = make_tokenizer()
    assert free_token(tokenizer, len(tokenizer) + 1, "m") == len(tokenizer)
    with pytest.raises(InputError, match=r"training\.mask_token_id"):
        free_token(tokenizer, len(tokenizer), "m")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|reserved_special_token_0|>"]})
    assert free_token(tokenizer, len(tokenizer), "m") == len(tokenizer) - 1
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    assert free_token(tokenizer, len(tokenizer), "m") == tokenizer.mask_token_id


def test_the_shipped_recipes_load():
    assert load_adapt_config("smollm2-135m-infill").training.mask_token_id == 16
    assert load_adapt_config("chat-infill").training.mask_token_id is None


def test_a_signal_at_a_step_is_resumed_to_an_equal_sampler(tmp_path, monkeypatch, capsys):
    base, table = tiny_chat_model(tmp_path / "base", "llama"), pairs_table(tmp_path / "table.csv")
    recipe, update = adapt_recipe(method="lora", checkpoint_every=2), Progress.update
    whole = adapt_model(base, str(tmp_path / "whole"), recipe, pairs=table)

    def stopped_once(self, done, note=""):
        update(self, done, note)
        if self.stage == "adapt" and done == 3 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            os.kill(os.getpid(), signal.SIGTERM)

    def run(arguments):
        adapt_model(base, str(tmp_path / "cut"), recipe, pairs=table, resume=arguments.resume)
        return 0

    monkeypatch.setattr(Progress, "update", stopped_once)
    monkeypatch.setattr(cli, "_adapt", run)
    assert cli.main(["adapt", base, "--out", "x"]) == 130
    assert capsys.readouterr().err.endswith("dat adapt: stopped; what is finished is kept, --resume continues\n")
    assert [path.name for path in (tmp_path / "cut" / "training" / "checkpoints").iterdir()] == ["step-00000002"]
    assert cli.main(["adapt", base, "--out", "x", "--resume"]) == 0
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "cut" / "sampler", whole))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def other_weights(base: str, folder: Path) -> str:
    """The same model but for its weights, as a fine-tuned copy is."""
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight + 0.1 for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_sampler_of_another_base_is_not_gone_on_with(recorded, tmp_path):
    base, table = tiny_chat_model(tmp_path / "base", "llama"), pairs_table(tmp_path / "table.csv")
    copy, out = other_weights(base, tmp_path / "copy"), tmp_path / "out"
    adapt_model(base, str(out), adapt_recipe(), pairs=table)
    if not recorded:  # as an earlier version left it
        (out / BEGUN).unlink()
    with pytest.raises(InputError, match=r"--out = .*out.*: was begun with another BASE: name a new folder"):
        adapt_model(copy, str(out), adapt_recipe(), pairs=table, resume=True)
    adapt_model(base, str(out), adapt_recipe(), pairs=table, resume=True)


def test_pairs_that_were_begun_otherwise_are_not_gone_on_with(tmp_path, monkeypatch):
    base, out = tiny_chat_model(tmp_path / "base", "qwen2"), str(tmp_path / "out")
    pairs_table(tmp_path / "table.csv")
    monkeypatch.setattr(adapting, "run_apart", lambda *_: 1)  # killed while it writes them
    with pytest.raises(DatError, match="--resume continues it"):
        adapt_model(base, out, adapt_recipe())

    def recipe(**synthesis):
        return adapt_recipe().model_copy(update={"synthesis": SynthesisConfig(**synthesis)})

    with pytest.raises(InputError, match=r"another synthesis.temperature, synthesis.top_k: name"):
        adapt_model(base, out, recipe(temperature=0.5, top_k=7), resume=True)
    # More of them, or fewer at a time, leave those that are there as they are.
    with pytest.raises(DatError, match="--resume continues it"):
        adapt_model(base, out, recipe(rows=9000, chunk=16), resume=True)


def test_two_adaptations_do_not_write_to_one_folder(tmp_path):
    base, table = tiny_chat_model(tmp_path / "base", "llama"), pairs_table(tmp_path / "table.csv")
    with filelock.FileLock(tmp_path / "out" / LOCK, thread_local=False) as other:
        assert other.is_locked
        with pytest.raises(DatError, match=r"out is in use by another process"):
            adapt_model(base, str(tmp_path / "out"), adapt_recipe(), pairs=table, resume=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]
