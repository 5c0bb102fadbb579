"""The evaluation, from the plans of its attacks to the work of its roles.

Attacks count themselves (`Attack.planned`), on a few held-out behaviors: what they ask grows with the behaviors. An attack of
somebody else's is counted the same way, but for its searches, and the plan says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import fmean

from dat_ray.config.evaluation import EvaluationConfig
from dat_ray.evaluation.attacks.base import Attack, Planned, Setup
from dat_ray.evaluation.registry import check_attacks, chosen_attacks
from dat_ray.planning.engine_work import Planning
from dat_ray.planning.footprint import search_bytes, weight_bytes_of
from dat_ray.planning.gap_work import risk_role
from dat_ray.planning.parts import RoleWork, StagePlan, devices_held, share_devices, slowest
from dat_ray.planning.quantities import TEMPLATE_TOKENS
from dat_ray.planning.speed import CPU_STAGE, CPU_TRAINING, PLAIN_LAYER, Answers, forward_flops

# Base and fine-tuned.
MODELS = 2
# Behaviors by which attacks count.
COUNTED = 4
# Tokens of a suffix or a rewrite beside the goal, and of an attacker's instructions with what it is shown.
SUFFIX_TOKENS, INSTRUCTION_TOKENS = 20, 800
# Questions of lm-eval's tasks, choices whose likelihood each asks for, and tasks that a group is made of, each of which has the
# limit of questions for itself (no subject of MMLU has fewer than 100); tokens of one choice.
UTILITY = {"mmlu": (14_042, 4, 57), "arc_easy": (2_376, 4, 1), "arc_challenge": (1_172, 4, 1)}
UTILITY_TOKENS = 100


@dataclass(frozen=True)
class SearchSize:
    """One search with gradients.

    Attributes:
        steps: one after the other.
        backward: rows forward and backward of a step.
        forward: rows forward of a step, of which the tokens behind the goal alone are computed.
        together: rows of a forward pass.
    """

    steps: int
    backward: int
    forward: int
    together: int


def planned_attacks(planning: Planning) -> dict[str, Planned]:
    """What each attack of the recipe makes.

    Raises:
        InputError: an attack that does not exist, or that lacks what it needs.
    """
    check_attacks(planning.recipe)
    behaviors = planning.sizes.behaviors
    found = {}
    for name, kind in chosen_attacks(planning.recipe.evaluation).items():
        # Files of prompts are matched to the goals themselves.
        few = behaviors if kind.has_answers else behaviors[:COUNTED]
        plan, scale = kind(Setup.to_count(planning.recipe, few)).planned(), len(behaviors) / max(1, len(few))
        found[name] = Planned(*(round(scale * count) for count in vars(plan).values()))
    return found


def search_of(name: str, config: EvaluationConfig) -> SearchSize | None:
    """The search of an attack of this package, from its part of the recipe; None for somebody else's."""
    if name == "embedding":
        return SearchSize(config.embedding.attack.steps, 1, 0, 1)
    if name == "pgd":
        return SearchSize(config.pgd.steps, 1, 1, 1)
    if name == "beast":
        beast = config.beast
        return SearchSize(beast.suffix_tokens, 0, beast.beams * (beast.branches + 1), beast.batch_size)
    if name == "gcg":
        return SearchSize(config.gcg.steps, 1, config.gcg.search_width, config.gcg.batch_size)
    return None


def search_role(planning: Planning, plans: dict[str, Planned]) -> RoleWork | None:
    """All searches on one model, in the target's pool."""
    recipe, sizes = planning.recipe, planning.sizes
    pool, model = recipe.cluster.target, planning.shape("target", recipe.target)
    host, shape = planning.host(pool), model.active
    target = sizes.heldout.target_tokens
    whole = TEMPLATE_TOKENS + sizes.heldout.goal_tokens + SUFFIX_TOKENS + target
    # What stands before the suffix is computed once.
    behind = SUFFIX_TOKENS + TEMPLATE_TOKENS / 5 + target
    seconds = calls = tokens = memory = 0.0
    for name, plan in plans.items():
        if not plan.searched:
            continue
        one = search_of(name, recipe.evaluation)
        if one is None:
            planning.notes[f"attack {name}: what its search takes is not known here, its time is not counted"] = None
            continue
        backward = one.backward * 2 * forward_flops(shape, whole, target, whole / 2)
        forward = one.forward * forward_flops(shape, behind, target, whole)
        launches = (3 * one.backward + -(-one.forward // one.together)) * shape.layers * PLAIN_LAYER
        step = host.products(backward + forward, CPU_TRAINING) + (launches if planning.device.is_gpu else 0.0)
        seconds += plan.searched * one.steps * step
        calls += plan.searched * one.steps * (one.backward + one.forward)
        tokens += plan.searched * one.steps * (one.backward * 2 * whole + one.forward * behind)
        memory = max(memory, search_bytes(recipe.target, model, max(1, min(one.together, one.forward)), whole, target))
    if not calls:
        return None
    start = host.start(weight_bytes_of(recipe.target, model))
    return RoleWork("search", recipe.target.model, pool, seconds, start, calls, tokens, memory)


def attacker_role(planning: Planning, plans: dict[str, Planned]) -> RoleWork | None:
    """What the attacker model writes for one model; what it writes once is halved, so that both models make the whole."""
    recipe, config = planning.recipe, planning.recipe.evaluation
    if config.attacker is None or not any(plan.written or plan.written_each for plan in plans.values()):
        return None
    asked = []
    for name, plan in plans.items():
        rounds = {"pair": config.pair.steps, "crescendo": config.crescendo.rounds + config.crescendo.backtracks}.get(name, 1)
        longest = {"pair": config.pair.max_new_tokens, "crescendo": config.crescendo.max_new_tokens}.get(
            name, config.attacker.max_new_tokens
        )
        rows = plan.written_each + plan.written / MODELS
        if rows:
            # A step waits for the one before it: no more rows than a step has are written together.
            together = max(1, min(config.attacker.batch_size, round(rows / rounds)))
            asked.append(Answers(rows, INSTRUCTION_TOKENS, float(longest), together))
    return planning.answers("attacker", "evaluation.attacker", config.attacker, recipe.cluster.attacker, *asked)


def harmless_prompts(planning: Planning) -> int:
    """Prompts in-painted for held-out harmless requests, which each model is asked."""
    return planning.sizes.harmless_heldout.goals * planning.recipe.evaluation.harmless_inpainting_samples


def target_role(planning: Planning, plans: dict[str, Planned]) -> RoleWork:
    """Answers of one model, log p of the held-out targets, the drift and the benchmarks."""
    recipe, sizes, config = planning.recipe, planning.sizes, planning.recipe.evaluation
    together, written = recipe.target.batch_size, float(config.max_new_tokens)
    goal = sizes.candidates_goal_tokens
    asked = []
    for name, plan in plans.items():
        prompt = TEMPLATE_TOKENS + fmean(recipe.sampler.prompt_tokens) if plan.drawn else goal
        rounds = {"pair": config.pair.steps, "crescendo": config.crescendo.rounds + config.crescendo.backtracks}.get(name, 1)
        if name != "embedding" and plan.asked:
            extra = SUFFIX_TOKENS if plan.searched or plan.written_each else 0
            asked.append(Answers(plan.asked, prompt + extra, written, max(1, min(together, round(plan.asked / rounds)))))
    harmless = harmless_prompts(planning)
    asked.append(Answers(harmless, TEMPLATE_TOKENS + fmean(recipe.sampler.prompt_tokens), written, together))
    look_alikes = sizes.look_alikes
    asked.append(Answers(look_alikes.goals, TEMPLATE_TOKENS + look_alikes.goal_tokens, written, together))
    targets = sizes.heldout.goals * sizes.heldout.targets
    asked.append(Answers(targets, goal + sizes.heldout.target_tokens, 1.0, together))
    if config.kl_rows:
        asked.append(Answers(config.kl_rows, float(recipe.training.max_tokens), 0.0, together))
    for task in config.utility.tasks:
        if task not in UTILITY:
            planning.notes[f"benchmark {task}: its size is not known here, its time is not counted"] = None
            continue
        questions, choices, members = UTILITY[task]
        rows = min(questions, members * (config.utility.limit or questions)) * choices
        asked.append(Answers(rows, UTILITY_TOKENS, 0.0, config.utility.batch_size))
    return planning.answers("target", "target", recipe.target, recipe.cluster.target, *asked)


def judge_role(planning: Planning, plans: dict[str, Planned]) -> RoleWork:
    """Judges' work on one model's answers, the second judge and the one of refusals included."""
    config, written = planning.recipe.evaluation, float(planning.recipe.evaluation.max_new_tokens)
    attempts = sum(plan.asked for plan in plans.values())
    own = planning.judge(planning.recipe.judge, attempts, written)
    harmless = planning.sizes.look_alikes.goals + harmless_prompts(planning)
    refusals = planning.judge(config.refusal_judge, harmless, written, "evaluation.refusal_judge")
    if config.second_judge is None:
        return planning.beside(own, refusals)
    return planning.beside(own, planning.judge(config.second_judge, attempts, written, "evaluation.second_judge"), refusals)


def evaluation_stage(planning: Planning) -> StagePlan:
    """Prompts are drawn beside the first model where there is room; models are attacked one after the other."""
    recipe, plans = planning.recipe, planned_attacks(planning)
    searching = [one for one in (search_role(planning, plans), risk_role(planning)) if one is not None]
    search, attacker = planning.beside(*searching) if searching else None, attacker_role(planning, plans)
    target, judge = target_role(planning, plans), judge_role(planning, plans)
    draws = [_sampler_role(planning, kind, plans[name]) for name, kind in chosen_attacks(recipe.evaluation).items()]
    if harmless := harmless_prompts(planning):
        draws.append(planning.sampler(recipe.sampler, harmless, planning.sizes.harmless_heldout.target_tokens))
    drawing = [one for one in draws if one is not None]
    sampler = planning.beside(*drawing) if drawing else None
    present = [one for one in (sampler, search, attacker, target, judge) if one is not None]
    before = (search.spread + search.start) if search else 0.0
    writing = (attacker.spread + attacker.start) if attacker else 0.0
    drawn = (sampler.spread + sampler.start) if sampler else 0.0
    if share_devices(present, planning.device):
        each = before + writing + target.spread + target.start + judge.spread
        total = drawn + judge.start + MODELS * each
    else:
        each = before + writing + max(target.spread, judge.spread) + target.start
        total = judge.start + max(drawn, each) + (MODELS - 1) * each
    # A search has the target's place, before the target starts.
    held = devices_held([one for one in present if one is not search], planning.device)
    once = {"sampler", "judge"}
    whole = tuple(
        replace(one, seconds=MODELS * one.seconds, start=one.start if one.role in once else MODELS * one.start,
                calls=MODELS * one.calls, tokens=MODELS * one.tokens) if one is not sampler else one
        for one in present
    )  # fmt: skip
    return StagePlan("evaluate", total + CPU_STAGE, held, slowest(whole), whole)


def _sampler_role(planning: Planning, kind: type[Attack], plan: Planned) -> RoleWork | None:
    if not plan.drawn:
        return None
    section = kind.needs[0] if kind.needs else "sampler"
    config = planning.recipe.evaluation.heldout_sampler if section.endswith("heldout_sampler") else planning.recipe.sampler
    assert config is not None, "check_attacks has looked"
    return planning.sampler(config, plan.drawn, planning.sizes.heldout.target_tokens, section)
