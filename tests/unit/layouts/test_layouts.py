"""Every layout of a target through encoding, attack, update, merge and export, against transformers and PEFT alone.

The other side of each comparison is the model as transformers loads it, with its own (eager) attention and PEFT's adapter, a
row at a time: no padding, no shared prefix, no head of ours.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from dat_ray.config.loading import fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.config.training import TrainingConfig
from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import write_manifest
from dat_ray.engines.torch_target import TorchTarget
from dat_ray.errors import InputError
from dat_ray.models.adapters import save_adapter
from dat_ray.models.chat import ChatFormat
from dat_ray.models.loading import model_fingerprint
from dat_ray.models.merging import merge_adapter
from dat_ray.ops.doctor import diagnose
from dat_ray.pipeline.export import export_run
from dat_ray.pipeline.stages import check_inputs
from dat_ray.training.attack import mean_embedding_norm
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.step import FineTuning, UpdateRows, make_trainer
from dat_ray.training.terms import find_perturbation
from dat_ray.training.trained import trained_files
from tests.ray.tiny_training import ready_run, tiny_training_recipe
from tests.unit.layouts.builders import LAYOUTS, SERVED, build, target_of
from tests.unit.layouts.cases import CONFIG, HARMFUL, RETAIN, Case, make_case, moved_adapter
from tests.unit.training.literal_update import literal_attack_objective, literal_harmful, literal_retain, token_logs

# What the doctor says of a target.
FINDINGS = ("target model", "chat template", "LoRA targets")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=SERVED)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp(request.param))


def near(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    """Equal up to rounding in float32, in proportion to the largest value."""
    ours, theirs = ours.detach(), theirs.detach()
    error, size = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    assert error <= tolerance * size, f"differ by {error:.3g} of {size:.3g}"


def test_ids_are_those_of_the_rendered_template(case: Case) -> None:
    # The date is that of Llama 3's template where nobody tells it one.
    variables: dict[str, Any] = {"date_string": "26 Jul 2024", **LAYOUTS[case.name].options}
    for prompt, *responses in [*HARMFUL, *RETAIN]:
        messages = [{"role": "user", "content": prompt}]
        rendered = case.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
        # A space between prompt and response may belong to either.
        for response in responses:
            answered = [*messages, {"role": "assistant", "content": response}]
            whole = case.tokenizer.apply_chat_template(answered, tokenize=False, **variables)
            assert whole.startswith(rendered.rstrip(" "))
            whole = whole[: whole.rindex(response) + len(response)]
            row = case.encode(prompt, response)
            assert row.ids == case.tokenizer(whole, add_special_tokens=False).input_ids
            assert row.ids[: row.response_span[0]] == case.chat.prompt_ids(prompt)
            assert case.tokenizer.decode(row.ids[slice(*row.user_span)]).strip() == prompt
            assert case.tokenizer.decode(row.ids[slice(*row.response_span)]).strip() == response


def literal_attack(model: nn.Module, row: HarmfulRow, unit: float, config: TrainingConfig = CONFIG) -> tuple[Tensor, list[float]]:
    """The perturbation (L, T, D) of one row, and its harmful cross-entropy before each step."""
    cfg = config.attack
    low, high = row.harmful.user_span
    delta = torch.zeros(len(cfg.layers), len(row.harmful.ids), model.get_input_embeddings().weight.shape[1])
    entropies = []
    for _ in range(cfg.steps):
        delta.requires_grad_(True)
        value = literal_attack_objective(model, row, delta, config)
        (gradient,) = torch.autograd.grad(value, delta)
        entropies.append(value.item())
        delta = delta.detach().clone()
        for place, t in itertools.product(range(len(cfg.layers)), range(low, high)):
            # A window hides the first positions from the response.
            if gradient[place, t].any():
                delta[place, t] -= cfg.step_size * unit * gradient[place, t] / gradient[place, t].norm()
    return delta.detach(), entropies


def literal_unit(model: nn.Module) -> float:
    """Mean length of what the embedding puts out, over its vocabulary."""
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        return sum(embedding(torch.tensor([i])).norm().item() for i in range(len(embedding.weight))) / len(embedding.weight)


def test_the_attack_is_the_plain_one(case: Case) -> None:
    network, plain, rows = case.network(), case.adapted(), case.harmful()
    unit = mean_embedding_norm(network.embedding)
    assert unit == pytest.approx(literal_unit(plain), rel=1e-5)
    deep = CONFIG.attack.model_copy(update={"layers": ("embedding", 0), "unit": "absolute", "steps": 2})
    for config, size in ((CONFIG, unit), (CONFIG.model_copy(update={"attack": deep}), 1.0)):
        found = find_perturbation(network, rows, config, unit)
        along = []
        for i, row in enumerate(rows):
            delta, entropies = literal_attack(plain, row, size, config)
            near(found.delta[:, i, : delta.shape[1]], delta, 1e-3)
            assert not found.delta[:, i, delta.shape[1] :].any()
            along.append(entropies)
        near(torch.tensor(found.harmful_ce), torch.tensor(along).mean(0))
        assert found.harmful_ce[-1] < found.harmful_ce[0]


def test_an_update_is_the_plain_one(case: Case) -> None:
    network, plain = case.network(), case.adapted()
    harmful, retain = case.harmful(), case.retain()
    rows = UpdateRows(harmful, retain, len(harmful), sum(high - low for low, high in (row.response_span for row in retain)))
    unit = literal_unit(plain)
    before = {name: weight.detach().clone() for name, weight in network.trainable().items()}
    # A plain gradient step, because the first one of Adam is a sign, which rounding turns over where there is no slope.
    trainer = make_trainer(network, CONFIG, 1)
    trainer.optimizer = torch.optim.SGD(network.trainable().values())
    metrics = FineTuning(network, CONFIG, lambda _: rows, unit).update(trainer, 0)
    losses = [literal_harmful(plain, row, literal_attack(plain, row, unit)[0], CONFIG) for row in harmful]
    kept = literal_retain(plain, retain, CONFIG)
    loss = torch.stack(losses).mean() + CONFIG.retain_weight * kept
    loss.backward()
    weights = {name: weight for name, weight in plain.named_parameters() if weight.requires_grad}
    assert weights.keys() == network.trainable().keys()
    assert CONFIG.max_grad_norm is not None
    norm = nn.utils.clip_grad_norm_(weights.values(), CONFIG.max_grad_norm)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-3)
    assert metrics["retain_kl"] == pytest.approx(kept.item(), rel=1e-3)
    assert metrics["gradient_norm"] == pytest.approx(norm.item(), rel=1e-3)
    ours = torch.cat([(after - before[name]).flatten() for name, after in network.trainable().items()])
    near(ours, torch.cat([-CONFIG.learning_rate * weights[name].grad.flatten() for name in network.trainable()]), 1e-3)


def logits(model: nn.Module, case: Case) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([case.retain()[0].ids])).logits[0]


def test_merged_weights_are_those_of_peft(case: Case, tmp_path: Path) -> None:
    merged = case.plain(merge_adapter(case.folder, case.adapter, str(tmp_path / "merged")))
    adapted = case.adapted()
    theirs = logits(adapted, case)
    assert (theirs - logits(case.plain(), case)).abs().max() > 0.05 * theirs.abs().max()
    near(logits(merged, case), theirs)
    unloaded = adapted.merge_and_unload().state_dict()
    assert unloaded.keys() == merged.state_dict().keys()
    for name, weight in merged.state_dict().items():
        near(weight, unloaded[name], 1e-6)


@pytest.fixture(scope="module")
def run(case: Case, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run whose training is finished."""
    recipe: Recipe = tiny_training_recipe(Path(case.folder))
    run = ready_run(tmp_path_factory.mktemp("run") / "run", recipe)
    save_adapter(moved_adapter(case.folder, case.name), run.adapter(0), model_fingerprint(case.folder))
    write_manifest(run.training(0), trained_files(run.training(0)), fingerprint(recipe))
    return run


def test_an_export_loads_elsewhere(case: Case, run: RunDir, tmp_path: Path) -> None:
    out = str(export_run(run.root, str(tmp_path / "out")))
    theirs = logits(case.adapted(), case)
    near(logits(case.plain(out), case), theirs)
    near(logits(peft.PeftModel.from_pretrained(case.plain(), f"{out}/adapter").eval(), case), theirs)
    tokenizer: Any = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == case.tokenizer.chat_template
    assert ChatFormat(tokenizer, case.target).prompt_ids(HARMFUL[0][0]) == case.chat.prompt_ids(HARMFUL[0][0])


def test_the_target_scores_and_answers_as_trained(case: Case) -> None:
    target, plain = TorchTarget(case.target, case.folder, 1, case.adapter), case.adapted()
    prompts = [prompt for prompt, _ in RETAIN]
    ours = target.logprob(prompts, [response for _, response in RETAIN])
    with torch.no_grad():
        theirs = [torch.stack(token_logs(plain, row, None)).mean() for row in case.retain()]
    near(torch.tensor(ours), torch.stack(theirs))
    for prompt, answer in zip(prompts, target.complete(prompts, 6), strict=True):
        ids = case.chat.prompt_ids(prompt)
        for _ in range(answer.tokens):
            with torch.no_grad():
                ids.append(int(plain(torch.tensor([ids])).logits[0, -1].argmax()))
        assert case.chat.response_text(ids[-answer.tokens :]) == answer.text


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("llama3-rope", {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}),
        ("mistral-window", {"sliding_window": None}),
        ("qwen3-moe", {"norm_topk_prob": True}),
        ("mixtral", {"num_experts_per_tok": 1}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("gemma3", {"layer_types": ["full_attention", "full_attention"]}),
        ("neox", {"use_parallel_residual": False}),
    ],
)
def test_what_a_layout_has_beyond_llama_shows(name: str, without: dict[str, Any], tmp_path: Path) -> None:
    """Or the table could not tell whether it was served."""
    folder, ids = build(name, tmp_path / "model"), torch.arange(40)[None] + 20
    with torch.no_grad():
        has = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")(ids).logits
        lacks = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **without)(ids).logits
    assert (has - lacks).abs().max() > 0.01 * has.abs().max()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a recipe needs beside its target: behaviors and a sampler."""
    root = tmp_path_factory.mktemp("inputs")
    behaviors = {name: root / f"{name}.csv" for name in ("training", "heldout")}
    for name, path in behaviors.items():
        path.write_text(f"goal,target\nMake {name} bread,Sure here is bread\n", encoding="utf-8")
    sampler = root / "sampler"
    build("llama", sampler)
    config = json.loads((sampler / "config.json").read_text(encoding="utf-8"))
    facts = {"mask_token_id": 3, "shift": 0, "banned_token_ids": [], "layout": "answer"}
    (sampler / "config.json").write_text(json.dumps({**config, "architectures": ["DatMaskedLlama"], "dat_sampler": facts}))
    return {
        "behaviors": {"path": str(behaviors["training"]), "heldout": {"path": str(behaviors["heldout"])}},
        "sampler": {"model": str(sampler), "backend": "torch"},
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_not_served_is_refused_before_a_run_begins(name: str, inputs: dict[str, Any], tmp_path: Path) -> None:
    layout, folder = LAYOUTS[name], build(name, tmp_path / "model")
    recipe = Recipe.model_validate(
        {
            "name": "layouts",
            "target": target_of(name, folder).model_dump(),
            "training": {"retain_rows": 0, "retain_weight": 0.0, "lora": {"targets": layout.targets}},
            **inputs,
        }
    )
    failed = [finding for finding in diagnose(recipe) if finding.name in FINDINGS and not finding.ok]
    if layout.refused is None:
        check_inputs(recipe)
        assert not failed
        return
    with pytest.raises(InputError, match=layout.refused) as caught:
        check_inputs(recipe)
    assert "\n" not in str(caught.value)
    assert [finding.detail for finding in failed] == [str(caught.value)]
