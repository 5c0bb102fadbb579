"""A whole plan: what it counts, what it says when something does not fit, and how it is shown."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dat_ray.cli import main
from dat_ray.config.cluster import Pool
from dat_ray.config.loading import difference, list_recipes, load_recipe
from dat_ray.devices import GPUS, processor
from dat_ray.evaluation.attacks.gcg import GcgAttack
from dat_ray.evaluation.questions import Behavior
from dat_ray.ops.doctor import diagnose
from dat_ray.planning.attacking import planned_attacks
from dat_ray.planning.engine_work import Planning
from dat_ray.planning.estimate import as_json, balance, plan_run
from dat_ray.planning.parts import RoleWork, RunPlan, StagePlan, memory_advice
from dat_ray.planning.plan_text import plan_line, plan_text
from dat_ray.planning.quantities import quantities
from tests.plain_demo import PLAIN

CORES = processor(2, 24e9, avx512=True)


def role_of(plan: RunPlan, stage: str, role: str) -> RoleWork:
    return next(one for found in plan.stages if found.name == stage for one in found.roles if one.role == role)


def test_the_demos_rows_are_counted() -> None:
    recipe = load_recipe("demo")
    plan = plan_run(recipe, CORES)
    samples, attempts = recipe.generation.samples_per_target, recipe.evaluation.inpainting_samples
    # 115 training goals with a target each, and 152 harmless requests with three, whose answers nobody judges.
    drawn, harmless = 115 * samples, 3 * 152 * recipe.generation.harmless_samples_per_target
    assert role_of(plan, "generate", "judge").calls == drawn
    assert role_of(plan, "generate", "target").calls == 2 * (drawn + harmless)
    # Two models: 48 held-out goals, as they are and in-painted, 128 look-alikes and 64 harmless requests; three targets a goal.
    held_out, others = 48 * attempts, 64 * recipe.evaluation.harmless_inpainting_samples
    asked = 48 + held_out + 128 + others
    assert role_of(plan, "evaluate", "judge").calls == 2 * asked
    # The drift reads 64 answers with either model.
    assert role_of(plan, "evaluate", "target").calls == 2 * (asked + 3 * 48 + 64)
    assert role_of(plan, "train", "trainer").calls == recipe.training.updates
    assert plan.fits


@pytest.mark.parametrize(
    ("task", "limit", "questions"),
    [("mmlu", None, 14_042), ("mmlu", 7, 57 * 7), ("mmlu", 5000, 14_042), ("arc_easy", 7, 7), ("arc_challenge", 5000, 1_172)],
)
def test_a_limit_of_questions_is_of_each_task_of_a_group(task: str, limit: int | None, questions: int) -> None:
    def calls(*settings: str) -> float:
        return role_of(plan_run(load_recipe("demo", settings), CORES), "evaluate", "target").calls

    asked = [f"evaluation.utility={{tasks: [{task}], limit: {'null' if limit is None else limit}}}"]
    # Either model, four choices a question.
    assert calls(*asked) - calls() == 2 * 4 * questions


def test_a_token_is_committed_a_pass_and_guidance_doubles_them() -> None:
    def passes(*settings: str) -> float:
        counts = ["evaluation.inpainting_samples=2", "sampler.prompt_tokens=[9,11,13,16]", "sampler.steps=10", *settings]
        plan = plan_run(load_recipe("demo", [*PLAIN, *counts]), CORES)
        return role_of(plan, "evaluate", "sampler").calls

    # Of 96 prompts the shortest quarter takes 9 passes, the others 10.
    assert passes("sampler.guidance=0") == 96 * 9.75
    assert passes("sampler.guidance=1") == 2 * 96 * 9.75


def test_the_papers_rows_are_counted_without_their_files() -> None:
    plan = plan_run(load_recipe("dat-llama3-8b"), GPUS["h100"])
    # 1,189 targets, 84 prompts each; 1,600 rows, 6 epochs, 4 an update.
    assert role_of(plan, "generate", "judge").calls == 1189 * 84
    assert role_of(plan, "train", "trainer").calls == 2_400
    # A forward pass each of 64 steps; the evaluation draws 1,024 for each of 100 behaviors.
    assert role_of(plan, "evaluate", "sampler").calls == 102_400 * 64
    # direct 1000, best-of-n 1000, in-painting 1024, gcg 1, pair 20 a behavior; 250 look-alikes; two models.
    assert role_of(plan, "evaluate", "judge").calls == 2 * (100 * (1000 + 1000 + 1024 + 1 + 20) + 250)
    assert role_of(plan, "evaluate", "search").calls == 2 * 100 * 250 * 513
    assert plan.disk["models"] == pytest.approx(2 * (8.02e9 + 8.03e9 + 2.51e9 + 11.8e9), rel=0.01)


def test_adapters_that_are_kept_need_room() -> None:
    settings = ["rounds=3", "selection.earlier_share=0.5", "training.updates=12"]
    without = plan_run(load_recipe("demo", settings), CORES).disk["checkpoints"]
    found = plan_run(load_recipe("demo", [*settings, "training.keep_every=4"]), CORES).disk["checkpoints"]
    # After 4 and 8 of 12 updates, in each of three rounds: 4.9 million parameters of rank 16 in float32.
    assert found - without == pytest.approx(3 * 2 * 4 * 4.88e6, rel=0.01)


def test_attacks_count_as_they_count_themselves() -> None:
    """On all behaviors, not the few by which a plan counts."""
    recipe = load_recipe(
        "dat-llama3-8b", ["evaluation.attacks=[direct,prefilling,gcg,inpainting]", "evaluation.inpainting_samples=3"]
    )
    sizes = quantities(recipe)
    many = [Behavior(f"b{number}", "goal", ((0, "y"), (1, "y"))) for number in range(9)]
    plans = planned_attacks(Planning(recipe, GPUS["h100"], replace(sizes, behaviors=many)))
    assert {name: (plan.asked, plan.drawn, plan.searched) for name, plan in plans.items()} == {
        "direct": (9000, 0, 0),
        "prefilling": (18, 0, 0),
        "gcg": (9, 0, 9),
        "inpainting": (27, 27, 0),
    }


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_planned_offline(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plan = plan_run(load_recipe(name), CORES if name == "demo" else GPUS["h100"])
    assert plan.seconds > 0
    # JSON holds the same, and nothing that JSON has not.
    stored = json.loads(json.dumps(as_json(plan), allow_nan=False))
    assert stored["seconds"] == pytest.approx(sum(stage["seconds"] for stage in stored["stages"]))
    assert all(role["memory_bytes"] >= 0 for stage in stored["stages"] for role in stage["roles"])


def test_actors_shorten_what_waits_for_them() -> None:
    one = plan_run(load_recipe("dat-llama3-8b", ["cluster.sampler.max_actors=1"]), GPUS["h100"]).stages[0]
    eight = plan_run(load_recipe("dat-llama3-8b"), GPUS["h100"]).stages[0]
    assert one.critical == eight.critical == "sampler"
    assert one.seconds > 5 * eight.seconds
    # Held: sampler, 8 targets, a judge.
    assert (one.devices, eight.devices) == (10, 17)
    uneven = plan_run(load_recipe("dat-llama3-8b", ["cluster.sampler.max_actors=1"]), GPUS["h100"])
    assert any("cluster.sampler.max_actors" in line for line in balance(uneven))


def test_a_model_over_several_gpus_has_a_part_of_its_memory_on_each() -> None:
    settings = ["cluster.target.num_gpus=2", "target.tensor_parallel=2"]
    one = role_of(plan_run(load_recipe("dat-qwen2.5-14b"), GPUS["l40s"]), "generate", "target")
    two = role_of(plan_run(load_recipe("dat-qwen2.5-14b", settings), GPUS["l40s"]), "generate", "target")
    assert one.allowed(GPUS["l40s"]) == two.allowed(GPUS["l40s"]) == pytest.approx(0.9 * 48e9)
    assert two.memory < 0.65 * one.memory


def test_what_is_not_counted_is_said() -> None:
    server = "judge.reader={model: m, backend: endpoint, endpoint: {url: 'http://h'}}"
    settings = ["encoder={}", "judge.name=xstest", server, "sampler.threshold=0.9", "evaluation.utility.tasks=[arc_easy,gsm8k]"]
    notes = plan_run(load_recipe("demo", settings), CORES).notes
    for part in ("encoder:", "judge: a server is asked", "sampler: parallel commits", "benchmark gsm8k"):
        assert any(note.startswith(part) for note in notes), part
    assert not any("arc_easy" in note for note in notes)


def test_somebody_elses_search_is_said_to_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GcgAttack, "name", "other")
    monkeypatch.setattr("dat_ray.planning.attacking.chosen_attacks", lambda config: {"other": GcgAttack})
    plan = plan_run(load_recipe("one-gpu"), GPUS["rtx4090"])
    assert any(note.startswith("attack other: what its search takes") for note in plan.notes)
    assert not any(role.role == "search" for role in plan.stages[-1].roles)


def test_what_does_not_fit_is_named() -> None:
    plan = plan_run(load_recipe("cat-qwen2.5-14b"), GPUS["rtx4090"])
    assert any(line.startswith("train: trainer needs") and "training.micro_rows" in line for line in plan.advice)
    assert not plan.fits
    assert "does not fit" in plan_line(plan)
    assert plan_run(load_recipe("cat-qwen2.5-14b"), GPUS["h100"]).fits
    on_a_gpu = plan_run(load_recipe("demo"), GPUS["h100"])
    assert any("cluster.sampler.num_gpus" in line for line in on_a_gpu.advice)
    on_a_cpu = plan_run(load_recipe("dat-llama3-8b"), CORES)
    assert any("asks for a GPU" in line for line in on_a_cpu.advice)


@pytest.mark.parametrize("name", ["one-gpu", "one-gpu-cat"])
def test_one_gpu_fits_a_card_of_24_gb_in_about_two_hours(name: str) -> None:
    plan = plan_run(load_recipe(name), GPUS["rtx4090"])
    assert plan.advice == ()
    assert plan.seconds < 2.25 * 3600
    assert all(stage.devices == 1 for stage in plan.stages)
    # What works at the same time fits one GPU, by Ray's count and by the shares that vLLM takes.
    recipe = load_recipe(name)
    for roles in (("sampler", "target", "judge"), ("attacker", "target", "judge")):
        assert sum(getattr(recipe.cluster, role).num_gpus for role in roles) <= 1
    engines = {section: engine for section, engine in recipe.engines().items() if section != "sampler"}
    assert len(engines) == 3
    for engine, pool in engines.values():
        assert engine.gpu_memory_utilization is not None
        assert engine.gpu_memory_utilization < getattr(recipe.cluster, pool).num_gpus


def test_the_arms_of_one_gpu_have_one_budget() -> None:
    """They differ in where prompts come from, and in nothing else: not in updates, rows, attack, models or evaluation."""
    ours, cat = load_recipe("one-gpu"), load_recipe("one-gpu-cat")
    fields = {line.partition(":")[0].partition(".")[0] for line in difference(ours, cat)}
    assert fields == {"selection", "generation"}
    assert ours.cluster == cat.cluster
    assert cat.selection.source == "goals"


def test_roles_that_share_a_card_are_added_up() -> None:
    half = Pool(num_gpus=0.5)
    roles = [RoleWork("sampler", "a", half, memory=11.5e9), RoleWork("target", "b", half, memory=11.9e9)]
    assert memory_advice("generate", roles, GPUS["rtx4090"]) == []
    larger = [*roles[:1], RoleWork("target", "b", half, memory=12.1e9)]
    [line] = memory_advice("generate", larger, GPUS["rtx4090"])
    assert "target needs 12.1 GB of the 12.0" in line
    # A share of its own may be larger than the GPUs say: then the sum tells.
    wide = [RoleWork("sampler", "a", half, memory=13e9, share=0.6), RoleWork("target", "b", half, memory=11.9e9)]
    [line] = memory_advice("generate", wide, GPUS["rtx4090"])
    assert "together exceed" in line


def test_a_plan_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "dat-llama3-8b", "--device", "a100-80", "--set", "generation.samples_per_target=2"]) == 0
    shown = capsys.readouterr().out
    assert "dat-llama3-8b on A100" in shown
    for word in ("generate", "sampler", "total", "everything fits", "disk, GB", "not been measured"):
        assert word in shown
    assert main(["plan", "demo", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device"]["cores"] >= 1
    assert main(["plan", "demo", "--device", "tpu"]) == 2
    assert "choose one of h200" in capsys.readouterr().err
    assert main(["plan", "dat-llama3-8b", "--set", "evaluation.attacks=[nothing]"]) == 2


@pytest.mark.slow
def test_doctor_has_the_totals_in_a_line() -> None:
    [check] = [check for check in diagnose(load_recipe("demo")) if check.name == "plan"]
    assert check.ok
    assert check.detail.startswith("about ")
    assert "\n" not in check.detail


def test_a_stage_holds_its_devices_as_long_as_it_takes() -> None:
    role = RoleWork("sampler", "m", Pool(num_gpus=1, max_actors=3), seconds=30.0)
    stage = StagePlan("generate", 10.0, 3.0, "sampler", (role,))
    plan = RunPlan("r", GPUS["h100"], (stage, stage), {"rows": 1e9})
    assert (plan.seconds, plan.device_seconds, role.spread) == (20.0, 60.0, 10.0)
    assert plan_text(plan).count("sampler *") == 2
