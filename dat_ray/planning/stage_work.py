"""Generation and training, from a recipe to the work of their roles."""

from __future__ import annotations

from statistics import fmean

from dat_ray.config.training import TrainingConfig
from dat_ray.generation.select import needs_candidates
from dat_ray.planning.engine_work import Planning
from dat_ray.planning.footprint import trainer_bytes, weight_bytes_of
from dat_ray.planning.parts import RoleWork, StagePlan, added, devices_held, repeated, share_devices, slowest
from dat_ray.planning.quantities import TEMPLATE_TOKENS
from dat_ray.planning.speed import (
    CPU_STAGE,
    CPU_STREAM,
    EAGER_LAYER,
    FORWARD_SHARE,
    RECORDED_LAYER,
    Answers,
    Host,
    step_seconds,
)
from dat_ray.training.memory import LlamaShape
from dat_ray.training.passes import UpdateTokens, count_passes, count_updates


def candidate_rows(planning: Planning) -> int:
    """Prompts that generation draws."""
    recipe = planning.recipe
    return planning.sizes.targets * recipe.generation.samples_per_target if needs_candidates(recipe) else 0


def harmless_rows(planning: Planning) -> int:
    """Prompts that generation draws for harmless requests: answered, and never judged."""
    recipe, harmless = planning.recipe, planning.sizes.harmless
    if not needs_candidates(recipe):
        return 0
    return round(harmless.goals * harmless.targets) * recipe.generation.harmless_samples_per_target


def generation_stage(planning: Planning) -> StagePlan | None:
    """The candidates of all rounds, of which the first draws for harmless requests too; None where none are needed."""
    rows, later = candidate_rows(planning), planning.recipe.rounds - 1
    if not rows:
        return None
    first = drawing_stage(planning, "generate", rows, rows + harmless_rows(planning))
    return added(first, repeated(drawing_stage(planning, "generate", rows, rows), later)) if later else first


def drawing_stage(planning: Planning, name: str, rows: int, drawn: int) -> StagePlan:
    """Sampler, target and judge stream: the stage takes what the slowest takes, or the sum where they share a device.

    Args:
        planning: of the recipe.
        name: of the stage.
        rows: prompts that are judged.
        drawn: these, and others that are answered alone.
    """
    recipe, sizes = planning.recipe, planning.sizes
    prompt = TEMPLATE_TOKENS + fmean(recipe.sampler.prompt_tokens)
    together, written = recipe.target.batch_size, float(recipe.target.max_new_tokens)
    likelihoods = 1 + (recipe.generation.neutral_prompt is not None)
    again = prompt if recipe.target.backend == "torch" else 0.0
    target = planning.answers(
        "target",
        "target",
        recipe.target,
        recipe.cluster.target,
        Answers(drawn, prompt, written, together),
        # Scores of the responses, behind prompts that are in the cache.
        Answers(drawn * likelihoods, again + sizes.train.target_tokens, 1.0, together),
    )
    roles = (
        planning.sampler(recipe.sampler, drawn, sizes.train.target_tokens),
        target,
        planning.judge(recipe.judge, rows, written),
    )
    if share_devices(roles, planning.device):
        seconds = sum(one.seconds for one in roles)
        start = sum(one.start for one in roles) if not planning.device.is_gpu else max(one.start for one in roles)
    else:
        seconds, start = max(one.spread for one in roles), max(one.start for one in roles)
    fixed = CPU_STAGE + CPU_STREAM
    return StagePlan(name, seconds + start + fixed, devices_held(roles, planning.device), slowest(roles), roles)


def training_rows(planning: Planning) -> int:
    """Harmful rows of the training set, where each behavior keeps as many prompts as it may."""
    selection, train = planning.recipe.selection, planning.sizes.train
    if selection.source != "candidates":
        return planning.sizes.targets
    samples = planning.recipe.generation.samples_per_target
    return train.goals * (min(selection.keep, int(samples * train.targets)) + selection.include_original)


def row_tokens(planning: Planning) -> UpdateTokens:
    """Tokens of one row of each kind, cut as training cuts them, times the rows of an update."""
    recipe, sizes, cfg = planning.recipe, planning.sizes, planning.recipe.training
    drawn = fmean(recipe.sampler.prompt_tokens)
    user = {"candidates": drawn, "goals": sizes.train.goal_tokens}.get(recipe.selection.source)
    prompt = TEMPLATE_TOKENS + (fmean((drawn, sizes.train.goal_tokens)) if user is None else user)

    def response(before: float, wanted: float) -> float:
        return max(0.0, min(wanted, cfg.max_tokens - before))

    y, no = response(prompt, sizes.train.target_tokens), response(prompt, sizes.refusal_tokens)
    # A prompt that leaves no room is left out: the others have room.
    before = min(TEMPLATE_TOKENS + sizes.retain_prompt_tokens, cfg.max_tokens / 2)
    kept = response(before, cfg.retain.max_response_tokens if cfg.retain else 0)
    harmful, retain = cfg.harmful_rows, cfg.retain_rows
    return UpdateTokens(
        harmful=round(harmful * (prompt + y)),
        harmful_head=round(harmful * y),
        refusal=round(harmful * (prompt + no)),
        refusal_head=round(harmful * no),
        retain=round(retain * (before + kept)),
        retain_head=round(retain * kept),
    )


def update_seconds(host: Host, shape: LlamaShape, tokens: UpdateTokens, cfg: TrainingConfig, workers: int = 1) -> float:
    """Seconds of one update: products of all passes, and launches of each pass a layer.

    Args:
        host: of a worker.
        shape: of the model.
        tokens: of the update's rows, over all workers.
        cfg: training section.
        workers: that share the rows.
    """
    passes = count_passes(tokens, cfg)
    flops = passes.flops(shape.decoder_parameters, shape.head_parameters) / workers
    if cfg.activation_checkpointing:
        flops += 2.0 * shape.decoder_parameters * passes.backward / workers
    recorded = cfg.cuda_graph and not (cfg.compile or cfg.activation_checkpointing or cfg.shard_weights)
    micro = cfg.micro_rows or max(cfg.harmful_rows, cfg.retain_rows)
    chunks = -(-cfg.harmful_rows // (micro * workers))
    retain_chunks = -(-cfg.retain_rows // (micro * workers)) if cfg.retain_weight else 0
    attack = cfg.attack.steps * (RECORDED_LAYER if recorded else EAGER_LAYER) * chunks
    others = cfg.steps_per_attack * (chunks + retain_chunks * (1 + FORWARD_SHARE)) * EAGER_LAYER
    return step_seconds(host, shape, flops, attack + others)


def training_stage(planning: Planning) -> StagePlan:
    """The base model answers retain prompts that have no answer; then the updates."""
    recipe, sizes = planning.recipe, planning.sizes
    pool, model = recipe.cluster.trainer, planning.shape("target", recipe.target)
    host, cfg = planning.host(pool), recipe.training
    updates = count_updates(cfg, training_rows(planning))
    tokens = row_tokens(planning)
    # A worker's work; all of them work at the same time.
    seconds = updates * update_seconds(host, model.active, tokens, cfg, pool.max_actors) * pool.max_actors
    trainer = RoleWork(
        "trainer",
        recipe.target.model,
        pool,
        seconds=seconds,
        start=host.start(weight_bytes_of(recipe.target, model)),
        calls=updates,
        tokens=updates * float(count_passes(tokens, cfg).forward),
        memory=trainer_bytes(cfg, model, pool.max_actors),
    )
    roles, before = [trainer], 0.0
    if sizes.retain_unanswered and cfg.retain is not None:
        asked = Answers(
            sizes.retain_unanswered,
            TEMPLATE_TOKENS + sizes.retain_prompt_tokens,
            float(cfg.retain.answer_tokens),
            recipe.target.batch_size,
        )
        answering = planning.answers("target", "target", recipe.target, recipe.cluster.target, asked)
        before = answering.spread + answering.start
        roles.insert(0, answering)
    total = before + trainer.spread + trainer.start + CPU_STAGE
    return StagePlan("train", total, devices_held([trainer], planning.device), slowest(roles), tuple(roles))
