"""`dat export`: what a run has trained, loaded by transformers, PEFT, vLLM and lm-eval."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dat_ray.cli import main
from dat_ray.config.loading import fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.config.training import LoraConfig
from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import write_manifest
from dat_ray.engines import vllm_env
from dat_ray.errors import DatError, InputError, ShardError
from dat_ray.evaluation.results import Metrics, store_metrics
from dat_ray.models.adapters import attach_lora, save_adapter
from dat_ray.models.loading import load_causal_lm, model_fingerprint
from dat_ray.pipeline.export import export_run
from dat_ray.training.trained import trained_files
from tests.ray.tiny_training import ready_run, tiny_training_recipe

IDS = torch.tensor([[5, 80, 300, 7, 0, 12]])
TASK = """
task: local_export
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def recipe(tiny_llama: str) -> Recipe:
    return tiny_training_recipe(Path(tiny_llama))


@pytest.fixture(scope="module")
def trained(recipe: Recipe, tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run with an adapter that moves the model by a good deal, and an evaluation."""
    run = ready_run(tmp_path_factory.mktemp("export") / "run", recipe)
    model = attach_lora(load_causal_lm(tiny_llama, "float32"), LoraConfig(rank=4, alpha=8), seed=1)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_adapter(model, run.adapter(0), model_fingerprint(tiny_llama))
    write_manifest(run.training(0), trained_files(run.training(0)), fingerprint(recipe))
    cell = {"asr": 0.25, "low": 0.1, "high": 0.5, "n_behaviors": 8}
    unmeasured = {"rate": None, "low": None, "high": None}
    rest = {"utility": {}, "target_logprob": {"mean": None, "low": None, "high": None}}
    block = {
        "attacks": {"direct": cell},
        "boa": {**cell, "asr": 0.375},
        "over_refusal": unmeasured,
        **rest,
    }
    harmless = {**block, "over_refusal": {"rate": 0.125, "low": 0.0, "high": 0.3}}
    judge = {"name": "refusal-rules", "fingerprint": "0", "is_proxy": True}
    tree = {"judge": judge, "models": {"base": block, "adapted": harmless}, "paired": []}
    store_metrics(run.evaluation("heldout"), Metrics.model_validate(tree))
    return run


@pytest.fixture(scope="module")
def exported(trained: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "model"
    assert main(["export", trained.root, "--out", str(out)]) == 0
    return out


def test_transformers_and_peft_load_the_same_model(exported: Path, tiny_llama: str) -> None:
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(exported)(IDS).logits
        base = AutoModelForCausalLM.from_pretrained(tiny_llama)
        plain = base(IDS).logits
        adapted = peft.PeftModel.from_pretrained(base, str(exported / "adapter")).eval()(IDS).logits
    # float32: a merged sum and two separate products round differently.
    assert torch.allclose(merged, adapted, atol=1e-3, rtol=1e-3)
    assert (merged - plain).abs().max() > 0.1
    text = "How are you?"
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (exported, tiny_llama))
    assert ours(text).input_ids == theirs(text).input_ids
    assert ours.chat_template == theirs.chat_template


def test_a_template_of_the_recipe_goes_along(recipe: Recipe, trained: RunDir, tiny_llama: str, tmp_path: Path) -> None:
    own = "{% for message in messages %}[{{ message.role }}]\n{{ message.content }}<|im_end|>\n{% endfor %}"
    own += "{% if add_generation_prompt %}[assistant]\n{% endif %}"
    target = recipe.target.model_copy(update={"chat_template": own})
    changed = recipe.model_copy(update={"target": target})
    run = ready_run(tmp_path / "run", changed)
    shutil.copytree(trained.adapter(0), run.adapter(0))
    write_manifest(run.training(0), trained_files(run.training(0)), fingerprint(changed))
    tokenizer = AutoTokenizer.from_pretrained(export_run(run.root, str(tmp_path / "model")))
    shown = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert shown == "[user]\nHi<|im_end|>\n[assistant]\n"
    assert AutoTokenizer.from_pretrained(tiny_llama).chat_template != tokenizer.chat_template


@pytest.mark.slow
def test_vllm_loads_the_merged_model(exported: Path, vllm_process: None) -> None:
    engine = vllm_env.start_engine(
        str(exported), kv_cache_gib=0.05, dtype="float32", max_model_len=64, max_num_batched_tokens=64, max_num_seqs=1
    )
    from vllm import SamplingParams

    prompt = IDS[0].tolist()
    wanted = SamplingParams(temperature=0.0, max_tokens=6, logprobs=1, ignore_eos=True, detokenize=False)
    written = engine.generate({"prompt_token_ids": prompt}, wanted, use_tqdm=False)[0].outputs[0]
    assert len(written.token_ids) == 6
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *written.token_ids]])
        expected = AutoModelForCausalLM.from_pretrained(exported)(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    for row, token, shown in zip(expected, written.token_ids, written.logprobs, strict=True):
        # float32 in two orders of summation; a tie may go either way, so the value counts and not the index.
        assert shown[token].logprob == pytest.approx(row.max().item(), abs=1e-3)
        assert row[token].item() == pytest.approx(row.max().item(), abs=1e-3)


@pytest.mark.drill
def test_lm_eval_loads_the_merged_model(exported: Path, tmp_path: Path) -> None:
    """As its own command line would, on a task of this test; its likelihoods decide as transformers' do."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    choices = ["blue", "a boat", "seven"]
    nouns = ("sky", "sea", "sun", "cat", "day", "tree", "moon")
    rows = [{"question": f"The {noun} is", "choices": choices} for noun in nouns]
    tokenizer, model = AutoTokenizer.from_pretrained(exported), AutoModelForCausalLM.from_pretrained(exported)

    def likelihood(question: str, choice: str) -> float:
        # lm-eval puts a space between the two.
        before, ids = tokenizer(question).input_ids, tokenizer(f"{question} {choice}").input_ids
        assert ids[: len(before)] == before
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(logs[i - 1, ids[i]].item() for i in range(len(before), len(ids)))

    likelihoods = [[likelihood(f"The {noun} is", choice) for choice in choices] for noun in nouns]
    best = [max(range(3), key=by_choice.__getitem__) for by_choice in likelihoods]
    # Right for four questions and wrong for three, by what transformers says.
    answers = [index if i < 4 else (index + 1) % 3 for i, index in enumerate(best)]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps({**row, "answer": answer}) + "\n" for row, answer in zip(rows, answers, strict=True)))
    (tmp_path / "local.yaml").write_text(TASK.format(data=data))
    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(exported), "dtype": "float32"},
        tasks=["local_export"],
        task_manager=TaskManager(include_path=str(tmp_path)),
        device="cpu",
        bootstrap_iters=0,
    )
    assert found["results"]["local_export"]["acc,none"] == pytest.approx(4 / 7)


def test_the_card_tells_recipe_data_and_measures(exported: Path, trained: RunDir, recipe: Recipe) -> None:
    card = (exported / "README.md").read_text()
    assert fingerprint(recipe) in card
    assert "| adapted | direct | 25.0% | [10.0%, 50.0%] | 8 |" in card
    assert "| adapted | any of them | 37.5% |" in card
    assert "judge `refusal-rules`, a rule-based proxy" in card
    assert "Harmless prompts refused, adapted: 12.5% [0.0%, 30.0%]." in card
    assert "Harmless prompts refused, base" not in card
    assert "| training set | 10 |" in card
    assert "| retain set | 7 |" in card
    assert "learning_rate: 0.01" in card
    assert "please do" not in card, "no prompt is part of the card"
    # The adapter is published alone, so its card says what it needs.
    alone = (exported / "adapter" / "README.md").read_text()
    assert "library_name: peft" in alone.split("---")[1]
    assert "This is the LoRA adapter alone" in alone
    assert all("The base model's license applies." in one and "| adapted | direct | 25.0% |" in one for one in (card, alone))


def test_an_export_is_replaced_and_nothing_else_is(exported: Path, trained: RunDir, tmp_path: Path) -> None:
    (exported / "stale").write_text("x")
    assert export_run(trained.root, str(exported)) == exported
    assert not (exported / "stale").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match=r"--out = .*holds something that is no export"):
        export_run(trained.root, str(mine))
    assert (mine / "notes.txt").read_text() == "keep"


def test_an_adapter_that_is_not_what_the_training_left_is_not_exported(trained: RunDir, tmp_path: Path) -> None:
    shutil.copytree(trained.root, tmp_path / "run")
    altered = RunDir(str(tmp_path / "run"))
    weights = Path(altered.adapter(0)) / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ShardError, match=r"adapter_model.safetensors is missing or was altered: remove .* and train again"):
        export_run(altered.root, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_run_without_an_adapter_is_told(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"RUN_DIR = .*holds no run"):
        export_run(str(tmp_path / "nothing"), str(tmp_path / "out"))
    run = ready_run(tmp_path / "begun", recipe)
    with pytest.raises(DatError, match="holds no finished training: run `dat train"):
        export_run(run.root, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
