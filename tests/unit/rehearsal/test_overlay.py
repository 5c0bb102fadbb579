"""Which values a rehearsal replaces: counts, the cluster and what the machine lacks, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from dat_ray.config.loading import list_recipes, load_recipe
from dat_ray.config.models import SamplerConfig
from dat_ray.config.schema import Recipe
from dat_ray.config.section import leaves
from dat_ray.errors import InputError
from dat_ray.rehearsal.overlay import COUNTS, Machine, rehearsed, replace_values, with_models

# Written out here by hand: what of `dat-llama3-8b` may differ on a machine without a GPU that has vLLM.
DIFFERENT = {
    "behaviors.limit", "behaviors.targets_per_behavior", "behaviors.heldout.limit", "behaviors.heldout.targets_per_behavior",
    "behaviors.over_refusal.limit", "generation.samples_per_target", "selection.keep", "selection.goal_without_prompt",
    "sampler.steps", "target.kv_cache_gib", "judge.reader.kv_cache_gib", "evaluation.attacker.kv_cache_gib",
    "training.updates", "training.harmful_rows", "training.retain_rows", "training.micro_rows", "training.attack.steps",
    "training.retain.limit", "evaluation.inpainting_samples", "evaluation.direct.samples", "evaluation.best_of_n.samples",
    "evaluation.tense.samples", "evaluation.translation.languages", "evaluation.pair.steps", "evaluation.crescendo.rounds",
    "evaluation.crescendo.backtracks", "evaluation.gcg.steps", "evaluation.gcg.search_width", "evaluation.beast.suffix_tokens",
    "evaluation.beast.beams", "evaluation.beast.branches", "evaluation.pgd.steps", "evaluation.embedding.attack.steps",
    "evaluation.harmless_inpainting_samples",
    "evaluation.utility.limit", "cluster.sampler.num_gpus", "cluster.sampler.max_actors", "cluster.sampler.subcluster",
    "cluster.target.num_gpus", "cluster.target.max_actors", "cluster.target.subcluster", "cluster.judge.num_gpus",
    "cluster.judge.subcluster", "cluster.trainer.num_gpus", "cluster.trainer.num_cpus", "cluster.trainer.subcluster",
    "cluster.attacker.num_gpus", "cluster.attacker.subcluster",
}  # fmt: skip


def values(recipe: Recipe) -> dict[str, Any]:
    return {path: leaf.value for path, leaf in leaves(recipe)}


def test_nothing_else_of_a_published_recipe_changes() -> None:
    recipe = load_recipe("dat-llama3-8b")
    after, replaced = rehearsed(recipe, Machine())
    old, new = values(recipe), values(after)
    assert {path for path in old if old[path] != new[path]} == DIFFERENT == {one.path for one in replaced}
    for one in replaced:
        assert (one.before, one.after) == (old[one.path], new[one.path])
        assert one.reason
    assert after.sampler.prompt_tokens == (64,)
    assert (after.target.max_new_tokens, after.target.max_model_len, after.training.max_tokens) == (256, 1024, 128)


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_has_a_rehearsal_that_asks_for_no_gpu(name: str) -> None:
    recipe = load_recipe(name)
    after, replaced = rehearsed(recipe, Machine(vllm=False), backend="torch")
    engines = {section: engine for section, (engine, _) in after.engines().items()}
    assert {engine.backend for engine in engines.values()} == {"torch"}
    assert {getattr(after.cluster, role).num_gpus for role in ("sampler", "target", "judge", "trainer", "attacker")} == {0.0}
    others = {f"{section}.backend" for section, (engine, _) in recipe.engines().items() if engine.backend != "torch"}
    assert others <= {one.path for one in replaced}
    for path, most in COUNTS.items():
        found = values(after).get(path)
        assert found is None or found <= most, path
    # What an objective is made of is the recipe's own.
    for field in ("away", "away_weight", "toward_weight", "retain_loss", "retain_weight", "max_tokens", "lora", "learning_rate"):
        assert getattr(after.training, field) == getattr(recipe.training, field)
    assert (after.training.retain_rows == 0) == (recipe.training.retain_rows == 0)
    assert after.training.attack.layers == recipe.training.attack.layers
    assert after.evaluation.attacks == recipe.evaluation.attacks
    assert after.judge.name == recipe.judge.name


def test_a_machine_with_a_gpu_shares_it_and_one_without_a_dtype_takes_float32() -> None:
    recipe = load_recipe("cat-llama3-8b", ["sampler.quantization=fp8", "cluster.target.num_gpus=2", "target.tensor_parallel=2"])
    after, replaced = rehearsed(recipe, Machine(gpus=1, dtypes=frozenset({"float32", "bfloat16"})))
    reasons = {one.path: (one.after, one.reason) for one in replaced}
    assert reasons["training.dtype"] == ("float32", "not on this machine")
    assert reasons["cluster.target.num_gpus"] == (0.2, "this machine")
    assert (after.target.tensor_parallel, after.target.gpu_memory_utilization) == (1, 0.18)
    assert after.sampler.quantization == "fp8"
    without, _ = rehearsed(recipe, Machine())
    assert (without.sampler.quantization, without.training.dtype) == (None, "float16")


LEGAL = {
    "compiled layers": ["sampler.backend=torch", "sampler.compile=true"],
    "a bound on the likelihood": ["sampler.backend=torch", "sampler.likelihood_samples=4"],
    "8 bits": ["sampler.backend=torch", "sampler.quantization=fp8", "target.backend=vllm", "target.quantization=fp8"],
    "a second sampler": [
        "evaluation.heldout_sampler={model: m, backend: torch, compile: true, likelihood_samples: 2, quantization: fp8}"
    ],
}


@pytest.mark.parametrize("settings", LEGAL.values(), ids=LEGAL)
@pytest.mark.parametrize(
    "machine",
    [Machine(), Machine(vllm=False), Machine(gpus=1), Machine(gpus=1, eight_bits=False)],
    ids=["no gpu", "no vllm", "a gpu", "a gpu without 8 bits"],
)
def test_settings_of_one_backend_or_of_a_gpu_are_left_out_where_there_is_none(settings: list[str], machine: Machine) -> None:
    recipe = load_recipe("dat-llama3-8b", settings)
    for backend in (None, "torch", *(["vllm"] if machine.vllm else [])):
        after, replaced = rehearsed(recipe, machine, backend)
        reasons = {one.path: one.reason for one in replaced}
        for section, (engine, _) in after.engines().items():
            if not isinstance(engine, SamplerConfig):
                continue
            was = values(recipe)
            torch_here = engine.backend == "torch"
            assert engine.compile is (was[f"{section}.compile"] and torch_here and machine.gpus > 0)
            assert engine.likelihood_samples == (min(was[f"{section}.likelihood_samples"], 2) if torch_here else 0)
            assert engine.quantization is None or (machine.gpus and (machine.eight_bits or not torch_here))
            if was[f"{section}.compile"] and not engine.compile:
                assert reasons[f"{section}.compile"] == ("not on this machine" if torch_here else "--backend")


def test_values_that_do_not_go_together_are_one_line() -> None:
    recipe = load_recipe("dat-llama3-8b", ["sampler.backend=torch", "sampler.compile=true"])
    with pytest.raises(InputError, match=r"sampler = \{\.\.\.\}: compile is for backend torch"):
        replace_values(recipe, {"sampler.backend": ("vllm", "by hand")})


def test_floors_and_guards_that_random_models_would_hit_are_listed() -> None:
    settings = [
        "encoder={}",
        "selection.min_goal_similarity=0.3",
        "selection.max_goal_similarity=0.9",
        "evaluation.min_goal_similarity=0.25",
        "selection.min_target_logprob=-3",
        "training.stop_away=-9",
        "tracking.wandb=mine",
        "evaluation.kl_rows=0",
    ]
    after, replaced = rehearsed(load_recipe("dat-llama3-8b", settings), Machine())
    listed = {one.path: (one.before, one.after) for one in replaced}
    assert listed["selection.min_target_logprob"] == (-3, None)
    assert listed["selection.min_goal_similarity"] == (0.3, None)
    assert listed["selection.max_goal_similarity"] == (0.9, None)
    assert listed["evaluation.min_goal_similarity"] == (0.25, None)
    assert listed["training.stop_away"] == (-9, None)
    assert listed["tracking.wandb"] == ("mine", None)
    assert "evaluation.kl_rows" not in listed
    assert after.evaluation.kl_rows == 0


def test_models_are_replaced_with_their_revision_and_nothing_else() -> None:
    recipe = load_recipe("dat-llama3-8b", ["target.revision=v2"])
    after, replaced = with_models(recipe, {"target": "/a", "judge.reader": "/b"})
    assert {(one.path, one.after) for one in replaced} == {
        ("target.model", "/a"),
        ("target.revision", "main"),
        ("judge.reader.model", "/b"),
    }
    assert after.sampler == recipe.sampler
