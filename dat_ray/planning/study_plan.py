"""The time of a study by arithmetic: what its runs share counts once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

from dat_ray.config.schema import Recipe
from dat_ray.config.study import Study, candidates_mark
from dat_ray.devices import Device
from dat_ray.evaluation.registry import check_primary
from dat_ray.generation.select import needs_candidates
from dat_ray.pipeline.fresh import fresh_sets
from dat_ray.planning.attacking import MODELS
from dat_ray.planning.estimate import plan_run
from dat_ray.planning.parts import RoleWork, RunPlan
from dat_ray.planning.plan_text import duration


@dataclass(frozen=True)
class StudyPart:
    """Work of one kind: how often, and the seconds of each."""

    name: str
    times: int
    seconds: float

    @property
    def total(self) -> float:
        return self.times * self.seconds


def study_parts(study: Study, device: Device) -> list[StudyPart]:
    """Candidates by set, trainings by arm, fresh prompts, evaluations by suite, adapters along the trainings.

    Raises:
        InputError: as `plan_run`.
    """
    check_primary(study)
    return list(_parts(study, device))


def _parts(study: Study, device: Device) -> Iterator[StudyPart]:
    # The first run of each set names it.
    sampled = {candidates_mark(run.recipe): run for run in reversed(study.runs) if needs_candidates(run.recipe)}
    # Sets of one arm and of other seeds take the same time.
    by_arm: dict[str, int] = {}
    for run in sampled.values():
        by_arm[run.arm] = by_arm.get(run.arm, 0) + 1
    recipes: dict[str, Recipe] = {}  # of each arm's first run; a part of a study has not all arms
    for run in study.runs:
        recipes.setdefault(run.arm, run.recipe)
    seeds = Counter(run.arm for run in study.runs)
    plans = {arm: plan_run(recipe, device) for arm, recipe in recipes.items()}
    once = {arm: recipe.model_copy(update={"rounds": 1}) for arm, recipe in recipes.items()}
    first = {
        arm: _seconds(plan_run(once[arm], device), "generate") if recipes[arm].rounds > 1 else _seconds(plans[arm], "generate")
        for arm in recipes
        if needs_candidates(recipes[arm])
    }
    for arm, sets in by_arm.items():
        yield StudyPart(f"candidates, first for {arm}", sets, first[arm])
    for arm, plan in plans.items():
        yield StudyPart(f"training of {arm}", seeds[arm], _seconds(plan, "train"))
        if recipes[arm].rounds > 1:
            later = _seconds(plan, "generate") - first[arm]
            yield StudyPart(f"later candidates of {arm}", seeds[arm], later)
    fresh = fresh_sets(study).values()
    if fresh:
        drawn = fmean(_seconds(plan_run(recipe, device), "fresh") for recipe in fresh)
        yield StudyPart("fresh prompts for the distribution gap", len(fresh), drawn)
    models = 1 + len(study.runs)
    for name, recipe in study.suites.items():
        plan = plan_run(recipe, device)
        drawing = _drawing(plan)
        if drawing:
            yield StudyPart(f"suite {name}, prompts", 1, drawing)
        yield StudyPart(f"suite {name}, each of {models} models", models, (_seconds(plan, "evaluate") - drawing) / MODELS)
    yield from _fronts(study, plans, device)


def _fronts(study: Study, plans: Mapping[str, RunPlan], device: Device) -> Iterator[StudyPart]:
    """The base model and the adapters along all trainings, each asked once; drawing comes before them."""
    fronts, recipe = study.config.fronts, study.front
    if fronts is None or recipe is None:
        return
    adapters = 0
    for run in study.runs:
        updates = next(role.calls for stage in plans[run.arm].stages for role in stage.roles if role.role == "trainer")
        adapters += run.recipe.rounds * -(-round(updates / run.recipe.rounds) // fronts.every)
    plan = plan_run(recipe, device)
    roles = _asked(plan)
    target, judge = roles["target"], roles["judge"]
    start, asked = target.start / MODELS, (target.spread + judge.spread) / MODELS
    shared = recipe.target.backend == "torch"
    yield StudyPart("fronts, prompts and start", 1, _drawing(plan) + judge.start + (start if shared else 0.0))
    models = 1 + adapters
    yield StudyPart(f"fronts, each of {models} models", models, asked + (0.0 if shared else start))


def _asked(plan: RunPlan) -> dict[str, RoleWork]:
    """The roles of an evaluation by name."""
    return {role.role: role for stage in plan.stages if stage.name == "evaluate" for role in stage.roles}


def _drawing(plan: RunPlan) -> float:
    """Seconds of an evaluation that its models share: its prompts are drawn before any of them is asked."""
    sampler = _asked(plan).get("sampler")
    return 0.0 if sampler is None else sampler.start + sampler.spread


def _seconds(plan: RunPlan, stage: str) -> float:
    return sum(one.seconds for one in plan.stages if one.name == stage)


def study_plan_text(study: Study, device: Device) -> str:
    """For people: a line a part, and the sum with as many runs at a time as the study has."""
    parts = study_parts(study, device)
    total = sum(part.total for part in parts)
    lines = [f"{study.config.name} on {device.title}: by arithmetic, nothing was started"]
    width = max(len(part.name) for part in parts)
    for part in parts:
        lines.append(f"{part.name.ljust(width)}  {part.times:>3} x {duration(part.seconds):>7}  {duration(part.total):>7}")
    lines.append(f"{'one after the other'.ljust(width)}  {'':>13}  {duration(total):>7}")
    if study.config.parallel > 1:
        lines.append(f"parallel: {study.config.parallel} runs at a time, as far as there is room for their pools")
    return "\n".join(lines)
