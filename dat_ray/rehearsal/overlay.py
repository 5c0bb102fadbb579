"""Which values of a recipe a rehearsal replaces, and by what: counts, the cluster, and what this machine lacks. Pure.

Everything else stays. Lengths in tokens stay too, so that what is cut and left out is as in the real run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dat_ray.config.loading import validate_known_fields
from dat_ray.config.models import SamplerConfig
from dat_ray.config.schema import Recipe
from dat_ray.config.section import leaves

# Counts and the most that a rehearsal takes of each; a count that is absent (no limit) is set to it.
COUNTS = {
    "rounds": 2,
    "behaviors.limit": 2,
    "behaviors.targets_per_behavior": 2,
    "behaviors.heldout.limit": 2,
    "behaviors.heldout.targets_per_behavior": 1,
    "behaviors.over_refusal.limit": 2,
    "behaviors.harmless.limit": 2,
    "behaviors.harmless.targets_per_behavior": 1,
    "behaviors.harmless_heldout.limit": 2,
    "behaviors.harmless_heldout.targets_per_behavior": 1,
    "generation.samples_per_target": 2,
    "generation.harmless_samples_per_target": 1,
    "selection.keep": 2,
    "training.updates": 2,
    "training.harmful_rows": 2,
    "training.retain_rows": 2,
    "training.attack.steps": 2,
    "training.retain.limit": 32,
    "evaluation.inpainting_samples": 2,
    "evaluation.harmless_inpainting_samples": 1,
    "evaluation.direct.samples": 2,
    "evaluation.best_of_n.samples": 2,
    "evaluation.tense.samples": 1,
    "evaluation.pair.steps": 2,
    "evaluation.pair.streams": 1,
    "evaluation.crescendo.rounds": 2,
    "evaluation.crescendo.backtracks": 1,
    "evaluation.crescendo.streams": 2,
    "evaluation.gcg.steps": 2,
    "evaluation.gcg.search_width": 8,
    "evaluation.gcg.attempts": 2,
    "evaluation.beast.suffix_tokens": 3,
    "evaluation.beast.beams": 2,
    "evaluation.beast.branches": 2,
    "evaluation.beast.attempts": 2,
    "evaluation.pgd.steps": 3,
    "evaluation.pgd.attempts": 2,
    "evaluation.embedding.attack.steps": 2,
    "evaluation.utility.limit": 1,
    "evaluation.gap.behaviors": 2,
    "evaluation.gap.prompts": 2,
    "evaluation.kl_rows": 2,
}
# Of these an absent count is no count, and stays absent.
_ONLY_WHERE_GIVEN = {"training.micro_rows": 2}
SAMPLER_STEPS, LIKELIHOOD_SAMPLES, KV_CACHE_GIB, PROMPT_SAMPLES = 8, 2, 0.25, 2
# The roles that may hold a part of one GPU at the same time.
_SHARES = 5
_WEIGHTS, _SIZE, _CLUSTER = "a tiny model", "size", "this machine"
_UNTRAINED = "random models reach no floor and give no usable verdict"
_NOT_HERE = "not on this machine"
_OUTSIDE = "a rehearsal is tracked nowhere else"


@dataclass(frozen=True)
class Machine:
    """What a rehearsal can run on.

    Attributes:
        gpus: that Ray may hand out.
        vllm: whether vLLM is installed.
        dtypes: that it computes in.
        eight_bits: whether its GPUs multiply 8-bit numbers.
    """

    gpus: int = 0
    vllm: bool = True
    dtypes: frozenset[str] = frozenset({"float32", "bfloat16", "float16"})
    eight_bits: bool = True


@dataclass(frozen=True)
class Replaced:
    """One value of a recipe that a rehearsal does not use.

    Attributes:
        path: dotted.
        before, after: as in JSON.
        reason: a word or two.
    """

    path: str
    before: Any
    after: Any
    reason: str


def rehearsed(recipe: Recipe, machine: Machine, backend: str | None = None) -> tuple[Recipe, list[Replaced]]:
    """The recipe of a rehearsal, and every value in which it differs.

    Args:
        recipe: as it will be run in earnest.
        machine: at hand.
        backend: of every engine but servers; None for the recipe's own.
    """
    changes: dict[str, tuple[Any, str]] = {}
    for source in (_counts(recipe), _cluster(recipe, machine), _untrained(recipe), _engines(recipe, machine, backend)):
        changes |= {path: (value, reason) for path, value, reason in source}
    return replace_values(recipe, changes)


def with_models(recipe: Recipe, folders: Mapping[str, str]) -> tuple[Recipe, list[Replaced]]:
    """The recipe with tiny models in place of its own.

    Args:
        recipe: of `rehearsed`.
        folders: dotted section of an engine -> folder of its double.
    """
    changes: dict[str, tuple[Any, str]] = {}
    for section, folder in folders.items():
        changes |= {f"{section}.model": (folder, _WEIGHTS), f"{section}.revision": ("main", _WEIGHTS)}
    return replace_values(recipe, changes)


def replace_values(recipe: Recipe, changes: Mapping[str, tuple[Any, str]]) -> tuple[Recipe, list[Replaced]]:
    """The recipe with other values, and those of them that are others indeed.

    Args:
        recipe: checked.
        changes: dotted field of a section that is there -> value as in JSON, and why.

    Raises:
        InputError: values that do not go together.
    """
    tree = recipe.model_dump(mode="json")
    for path, (value, _) in changes.items():
        *parents, leaf = path.split(".")
        node: Any = tree
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        node[leaf] = value
    after, _ = validate_known_fields(Recipe, tree)
    old, new = ({path: leaf.value for path, leaf in leaves(one)} for one in (recipe, after))
    assert old.keys() == new.keys(), "no section comes or goes"
    return after, [Replaced(path, old[path], new[path], changes[path][1]) for path in old if old[path] != new[path]]


def _value(recipe: Recipe, path: str) -> tuple[Any, bool]:
    """A value, and whether its section is there."""
    node: Any = recipe
    for part in path.split("."):
        if node is None:
            return None, False
        node = getattr(node, part)
    return node, True


def _counts(recipe: Recipe) -> Iterator[tuple[str, Any, str]]:
    for path, most in (COUNTS | _ONLY_WHERE_GIVEN).items():
        value, there = _value(recipe, path)
        if there and not (value is None and path in _ONLY_WHERE_GIVEN):
            yield path, most if value is None else min(value, most), _SIZE
    yield "evaluation.translation.languages", list(recipe.evaluation.translation.languages[:1]), _SIZE
    for number, file in enumerate(recipe.evaluation.prompts):
        samples = PROMPT_SAMPLES if file.samples is None else min(file.samples, PROMPT_SAMPLES)
        yield f"evaluation.prompts.{number}.samples", samples, _SIZE
    for section, (engine, _) in recipe.engines().items():
        if isinstance(engine, SamplerConfig):
            if engine.refine is None:  # else the steps past the first filling are what is asked for
                yield f"{section}.steps", min(engine.steps, SAMPLER_STEPS), _SIZE
            yield f"{section}.likelihood_samples", min(engine.likelihood_samples, LIKELIHOOD_SAMPLES), _SIZE
        else:
            yield f"{section}.kv_cache_gib", min(engine.kv_cache_gib, KV_CACHE_GIB), _SIZE


def _cluster(recipe: Recipe, machine: Machine) -> Iterator[tuple[str, Any, str]]:
    share = min(1.0, machine.gpus / _SHARES)
    for role in ("sampler", "target", "judge", "encoder", "trainer", "attacker"):
        pool = getattr(recipe.cluster, role)
        new = {
            "min_actors": 1,
            "max_actors": 1,
            "num_cpus": min(pool.num_cpus, 1.0),
            "num_gpus": share if pool.num_gpus else 0.0,
            "subcluster": None,
        }
        for name, value in new.items():
            yield f"cluster.{role}.{name}", value, _CLUSTER
    for section, (engine, pool_name) in recipe.engines().items():
        yield f"{section}.tensor_parallel", 1, _CLUSTER
        on_gpu = machine.gpus and getattr(recipe.cluster, pool_name).num_gpus and engine.backend == "vllm"
        yield f"{section}.gpu_memory_utilization", round(0.9 * share, 3) if on_gpu else None, _CLUSTER
    for tracker in ("mlflow", "mlflow_uri", "wandb"):
        yield f"tracking.{tracker}", None, _OUTSIDE


def _untrained(recipe: Recipe) -> Iterator[tuple[str, Any, str]]:
    """What would end a run of random models and says nothing of the recipe."""
    similarities = ("selection.min_goal_similarity", "selection.max_goal_similarity", "evaluation.min_goal_similarity")
    for path in ("selection.min_target_logprob", *similarities, "training.stop_away", "training.stop_retain"):
        yield path, None, _UNTRAINED
    yield "selection.off_goal", "drop", _UNTRAINED
    yield "selection.goal_without_prompt", True, _UNTRAINED


def _engines(recipe: Recipe, machine: Machine, backend: str | None) -> Iterator[tuple[str, Any, str]]:
    for section, (engine, pool) in recipe.engines().items():
        if engine.backend == "endpoint":
            continue
        chosen = backend or (engine.backend if engine.backend != "vllm" or machine.vllm else "torch")
        reason = "--backend" if backend else _NOT_HERE
        on_gpu = machine.gpus and getattr(recipe.cluster, pool).num_gpus
        yield f"{section}.backend", chosen, reason
        if engine.dtype not in machine.dtypes:
            yield f"{section}.dtype", "float32", _NOT_HERE
        if chosen == "torch" and engine.backend == "vllm":
            # Settings that vLLM alone has.
            yield f"{section}.quantization", None, reason
            yield f"{section}.gpu_memory_utilization", None, reason
        elif not on_gpu or (chosen == "torch" and not machine.eight_bits):
            yield f"{section}.quantization", None, _NOT_HERE
        if isinstance(engine, SamplerConfig):
            if chosen == "vllm":
                # Settings that torch alone has.
                yield f"{section}.compile", False, reason
                yield f"{section}.likelihood_samples", 0, reason
            elif not on_gpu:
                yield f"{section}.compile", False, _NOT_HERE
    if recipe.training.dtype not in machine.dtypes:
        yield "training.dtype", "float32", _NOT_HERE
