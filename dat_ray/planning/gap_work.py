"""The distribution gap, from a recipe to work: fresh prompts once, scores with and without an attack for each model."""

from __future__ import annotations

from statistics import fmean

from dat_ray.planning.engine_work import Planning
from dat_ray.planning.footprint import search_bytes, weight_bytes_of
from dat_ray.planning.parts import RoleWork, StagePlan
from dat_ray.planning.quantities import TEMPLATE_TOKENS
from dat_ray.planning.speed import CPU_TRAINING, PLAIN_LAYER, forward_flops
from dat_ray.planning.stage_work import drawing_stage


def _behaviors(planning: Planning) -> tuple[float, float]:
    """Training and held-out behaviors that are measured."""
    gap, sizes = planning.recipe.evaluation.gap, planning.sizes
    most = float("inf") if gap is None or gap.behaviors is None else gap.behaviors
    return min(most, sizes.train.goals), min(most, sizes.heldout.goals)


def fresh_stage(planning: Planning) -> StagePlan | None:
    """As many candidates for each target as the training had; None where the gap is not measured."""
    recipe, sizes = planning.recipe, planning.sizes
    if recipe.evaluation.gap is None:
        return None
    train, held_out = _behaviors(planning)
    targets = train * sizes.train.targets + held_out * sizes.heldout.targets
    rows = round(targets) * recipe.generation.samples_per_target
    return drawing_stage(planning, "fresh", rows, rows)


def scored_prompts(planning: Planning) -> float:
    """Prompts that each model's gap is measured on, where no floor leaves any out."""
    recipe, sizes = planning.recipe, planning.sizes
    gap, samples = recipe.evaluation.gap, recipe.generation.samples_per_target
    if gap is None:
        return 0.0
    most = float("inf") if gap.prompts is None else gap.prompts
    train, held_out = _behaviors(planning)
    drawn = min(most, recipe.selection.keep)
    found = 2 * train * min(drawn, samples * sizes.train.targets) + held_out * min(drawn, samples * sizes.heldout.targets)
    # How many written prompts a behavior has is known to its file alone.
    people = recipe.selection.keep if gap.prompts is None else gap.prompts
    asked = "prompts" in recipe.evaluation.attacks and any(file.in_gap for file in recipe.evaluation.prompts)
    return found + (held_out * people if asked else 0.0)


def risk_role(planning: Planning) -> RoleWork | None:
    """Scores of one model, in the target's pool: plain, along the attack of training, and under what it found."""
    recipe, sizes, rows = planning.recipe, planning.sizes, scored_prompts(planning)
    if not rows:
        return None
    pool, model = recipe.cluster.target, planning.shape("target", recipe.target)
    host, shape, steps = planning.host(pool), model.active, recipe.training.attack.steps
    target = sizes.heldout.target_tokens
    whole = TEMPLATE_TOKENS + fmean(recipe.sampler.prompt_tokens) + target
    passes = 1 + (2 * steps + 1 if steps else 0)
    together = recipe.training.micro_rows or recipe.training.harmful_rows
    launches = (2 + 3 * steps) / together * shape.layers * PLAIN_LAYER if planning.device.is_gpu else 0.0
    each = host.products(passes * forward_flops(shape, whole, target, whole / 2), CPU_TRAINING) + launches
    return RoleWork(
        "search",
        recipe.target.model,
        pool,
        seconds=rows * each,
        start=host.start(weight_bytes_of(recipe.target, model)),
        calls=rows * passes,
        tokens=rows * passes * whole,
        memory=search_bytes(recipe.target, model, together, whole, target),
    )
