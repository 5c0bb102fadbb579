"""Plans a run: hours, device hours, memory of each role, disk, model calls and tokens, before anything starts.

`dat plan RECIPE --device h100`. Imports neither torch nor Ray: arithmetic on settings, with the rates of `speed.py`, each
of which says what it was measured with. Within 1.5 times of the records that it was not made from (tests/unit/planning).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dat_ray.config.models import SamplerConfig, TargetConfig
from dat_ray.config.schema import Recipe
from dat_ray.devices import CPU, GPUS, Device, this_processor
from dat_ray.errors import InputError
from dat_ray.planning.attacking import MODELS, evaluation_stage
from dat_ray.planning.engine_work import Planning
from dat_ray.planning.footprint import ROW_BYTES, checkpoint_bytes
from dat_ray.planning.gap_work import fresh_stage
from dat_ray.planning.parts import RunPlan, StagePlan, memory_advice, repeated
from dat_ray.planning.quantities import quantities
from dat_ray.planning.shapes import ModelShape
from dat_ray.planning.stage_work import candidate_rows, generation_stage, training_stage

# From which on the role that a stage waits for is worth more actors than the others have.
UNEVEN = 3.0


def choose_device(recipe: Recipe, name: str | None = None, here: Device | None = None) -> Device:
    """The device to plan for.

    Args:
        recipe: whose pools ask for GPUs or not.
        name: of the table, or `cpu`; absent: `here`, else an H100 where the recipe asks for GPUs, else this machine's cores.
        here: a GPU of this machine.

    Raises:
        InputError: no such device.
    """
    if name is None:
        pools = (recipe.cluster.sampler, recipe.cluster.target, recipe.cluster.judge, recipe.cluster.trainer)
        if not any(pool.num_gpus for pool in pools):
            return this_processor()
        return here or GPUS["h100"]
    if name == CPU:
        return this_processor()
    if name not in GPUS:
        raise InputError("--device", name, f"choose one of {', '.join((*GPUS, CPU))}")
    return GPUS[name]


def plan_run(recipe: Recipe, device: Device) -> RunPlan:
    """Plans all stages of a recipe on one kind of device.

    Args:
        recipe: resolved.
        device: of every actor.

    Raises:
        InputError: a model whose sizes, or a set whose rows, cannot be found out; an attack that lacks something.
    """
    planning = Planning(recipe, device, quantities(recipe))
    drawn = (generation_stage(planning), repeated(training_stage(planning), recipe.rounds), fresh_stage(planning))
    known = (*(stage for stage in drawn if stage is not None), evaluation_stage(planning))
    if recipe.encoder is not None:
        planning.notes["encoder: a small model beside the others, neither its time nor its memory is counted"] = None
    planning.notes["answers are taken to be as long as they may be; many end earlier"] = None
    if device.is_gpu:
        planning.notes["vLLM on a GPU has not been measured by this project: its rates are assumptions"] = None
    return RunPlan(recipe.name, device, known, _disk(planning, known), tuple(planning.notes), tuple(_advice(planning, known)))


def _disk(planning: Planning, stages: tuple[StagePlan, ...]) -> dict[str, float]:
    recipe = planning.recipe
    models: dict[str, float] = {}
    copies = 0.0
    for section, (config, _) in recipe.engines().items():
        if isinstance(config, TargetConfig) and config.backend == "endpoint":
            continue
        model = planning.shape(section, config)
        models[config.model] = 2.0 * model.stored
        # A published sampler is converted once, its copy lies in the cache.
        copies += 2.0 * model.stored if isinstance(config, SamplerConfig) else 0.0
    target: ModelShape = planning.shape("target", recipe.target)
    updates = sum(role.calls for stage in stages for role in stage.roles if role.role == "trainer")
    asked = sum(role.calls for stage in stages if stage.name == "evaluate" for role in stage.roles if role.role == "judge")
    return {
        "models": sum(models.values()),
        # The fine-tuned target is merged for vLLM.
        "copies": copies + 2.0 * target.stored,
        "checkpoints": recipe.rounds * checkpoint_bytes(recipe.training, target, updates / recipe.rounds),
        "rows": ROW_BYTES * (recipe.rounds * candidate_rows(planning) + asked),
    }


def _advice(planning: Planning, stages: tuple[StagePlan, ...]) -> list[str]:
    recipe, device, found = planning.recipe, planning.device, []
    for stage in stages:
        for role in [one for one in stage.roles if one.model]:
            if device.is_gpu and not role.pool.num_gpus:
                name = "target" if role.role == "search" else role.role
                found.append(f"{stage.name}: {role.role} would run on the CPU: set cluster.{name}.num_gpus")
            if not device.is_gpu and role.pool.num_gpus:
                found.append(f"{stage.name}: {role.role} asks for a GPU, and this machine is planned without: plan with --device")
        # Training's roles follow each other; the searches have the target's place.
        for group in [[one] for one in stage.roles] if stage.name == "train" else [list(stage.roles)]:
            found += memory_advice(stage.name, group, device)
    engines = [(section, config, pool) for section, (config, pool) in recipe.engines().items()]
    for section, config, pool in engines:
        share = getattr(recipe.cluster, pool).num_gpus
        if device.is_gpu and getattr(config, "backend", "") == "vllm" and 0 < share < 1 and config.gpu_memory_utilization is None:
            found.append(f"{section}: vLLM would take the whole card that it shares: set {section}.gpu_memory_utilization")
    return list(dict.fromkeys(found))


def balance(plan: RunPlan) -> list[str]:
    """What would make a stage shorter: more actors of the role that the others wait for."""
    found = []
    for stage in plan.stages:
        streams = [one for one in stage.roles if one.seconds and one.role in ("sampler", "target", "judge")]
        if plan.device.is_gpu and stage.name == "generate" and len(streams) > 1 and stage.devices > 1:
            first, second = sorted(streams, key=lambda one: -one.spread)[:2]
            if first.spread > UNEVEN * second.spread:
                found.append(
                    f"{stage.name} waits for the {first.role}: {first.role}s work {first.spread / 3600:.1f} h, {second.role}s "
                    f"{second.spread / 3600:.1f}; move actors from cluster.{second.role}.max_actors to "
                    f"cluster.{first.role}.max_actors"
                )
    return found


def as_json(plan: RunPlan) -> dict[str, Any]:
    """The plan for programs: seconds, bytes and counts."""
    return {
        "recipe": plan.recipe,
        "device": asdict(plan.device),
        "seconds": plan.seconds,
        "device_seconds": plan.device_seconds,
        "models_evaluated": MODELS,
        "stages": [
            {
                "name": stage.name,
                "seconds": stage.seconds,
                "device_seconds": stage.device_seconds,
                "devices": stage.devices,
                "critical": stage.critical,
                "roles": [
                    {
                        "role": role.role,
                        "model": role.model,
                        "actors": role.actors,
                        "seconds": role.seconds,
                        "start_seconds": role.start,
                        "model_calls": role.calls,
                        "tokens": role.tokens,
                        "memory_bytes": role.memory,
                        "allowed_bytes": role.allowed(plan.device),
                    }
                    for role in stage.roles
                ],
            }
            for stage in plan.stages
        ],
        "disk_bytes": plan.disk,
        "notes": list(plan.notes),
        "advice": list(plan.advice),
        "faster": balance(plan),
        "fits": plan.fits,
    }
