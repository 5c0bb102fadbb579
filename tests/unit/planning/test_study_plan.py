"""The time of a study: what is shared counts once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dat_ray.config.schema import Recipe
from dat_ray.config.study import read_study
from dat_ray.devices import GPUS
from dat_ray.planning.estimate import plan_run
from dat_ray.planning.parts import StagePlan
from dat_ray.planning.study_plan import StudyPart, study_parts, study_plan_text
from tests.plain_demo import PLAIN_ARMS

DEVICE = GPUS["h100"]


def test_candidates_count_once_a_seed_and_models_once_a_suite(tmp_path: Path) -> None:
    tree = {
        "name": "x",
        "seeds": [1, 2],
        "arms": {
            "dat": {},
            "random": {"settings": {"selection": {"score": "random"}}},
            "goals": {"settings": {"selection": {"source": "goals"}}},
            "rounds": {"settings": {"rounds": 3}},
        },
        "suites": {"one": {}, "two": {"attacks": ["direct"]}},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tree))
    study = read_study(str(path), PLAIN_ARMS)
    parts = {part.name: part for part in study_parts(study, DEVICE)}
    plan = plan_run(study.runs[0].recipe, DEVICE)
    seconds = {stage.name: stage.seconds for stage in plan.stages}
    # One set a seed for three arms.
    assert parts["candidates, first for dat"].times == 2
    assert parts["candidates, first for dat"].seconds == pytest.approx(seconds["generate"])
    assert [name for name in parts if name.startswith("candidates")] == ["candidates, first for dat"]
    assert parts["later candidates of rounds"].total == pytest.approx(2 * 2 * seconds["generate"])
    assert parts["training of rounds"].total == pytest.approx(2 * 3 * seconds["train"], rel=1e-6)
    assert parts["training of dat"].total == pytest.approx(2 * seconds["train"])
    suite = parts["suite one, each of 9 models"]
    assert suite.times == 9
    # Its prompts are drawn once, whoever is asked; a run's own evaluation is of two models.
    [sampler] = [role for stage in plan.stages if stage.name == "evaluate" for role in stage.roles if role.role == "sampler"]
    assert parts["suite one, prompts"].times == 1
    assert parts["suite one, prompts"].seconds == pytest.approx(sampler.start + sampler.spread)
    assert suite.seconds == pytest.approx((seconds["evaluate"] - sampler.start - sampler.spread) / 2)
    assert "suite two, prompts" not in parts
    text = study_plan_text(study, DEVICE)
    assert text.splitlines()[0].startswith("x on ")
    assert "one after the other" in text


def test_later_rounds_draw_for_goals_alone(tmp_path: Path) -> None:
    tree = {"name": "x", "recipe": "demo", "seeds": [1], "arms": {"rounds": {"settings": {"rounds": 3}}}, "suites": {"one": {}}}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tree))
    study = read_study(str(path), [])
    parts = {part.name: part.seconds for part in study_parts(study, DEVICE)}
    once = study.runs[0].recipe.model_copy(update={"rounds": 1})
    without = once.model_copy(update={"behaviors": once.behaviors.model_copy(update={"harmless": None})})

    def generate(recipe: Recipe) -> StagePlan:
        return next(stage for stage in plan_run(recipe, DEVICE).stages if stage.name == "generate")

    first, later = generate(once).seconds, generate(without).seconds
    assert later < first
    assert parts["candidates, first for rounds"] == pytest.approx(first)
    assert parts["later candidates of rounds"] == pytest.approx(2 * later)
    [sampler] = [role for role in generate(study.runs[0].recipe).roles if role.role == "sampler"]
    # In passes of the model, or rows: each of 115 goals has four draws a round, 152 harmless requests three once.
    assert sampler.calls / generate(without).roles[0].calls == pytest.approx((3 * 115 * 4 + 152 * 3) / (115 * 4))


def test_adapters_along_the_trainings_share_a_start_and_their_prompts(tmp_path: Path) -> None:
    tree = {
        "name": "x",
        "seeds": [1, 2],
        "settings": {"training": {"updates": 10}},
        "arms": {"dat": {}, "rounds": {"settings": {"rounds": 3, "training": {"updates": 4}}}},
        "fronts": {"every": 4},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tree))

    def parts(*settings: str) -> dict[str, StudyPart]:
        found = study_parts(read_study(str(path), list(settings)), DEVICE)
        return {part.name: part for part in found if part.name.startswith("fronts")}

    # After 4, 8 and 10 updates of one arm, after 4 of each of three rounds of the other, by two seeds, and the base model.
    together = parts()
    assert list(together) == ["fronts, prompts and start", "fronts, each of 13 models"]
    apart = parts("fronts.backend=vllm")
    each = "fronts, each of 13 models"
    assert together[each].times == apart[each].times == 13
    assert together[each].seconds < apart[each].seconds
    assert sum(part.total for part in together.values()) < sum(part.total for part in apart.values())
    assert parts("fronts=null") == {}


def test_the_distribution_gap_costs_its_draws_once_and_its_scores_for_each_model(tmp_path: Path) -> None:
    def plan(gap: object, **suite: object) -> dict[str, float]:
        tree = {
            "name": "x",
            "seeds": [1, 2],
            "settings": {
                "behaviors": {"targets_per_behavior": 1, "heldout": {"targets_per_behavior": 2}},
                "generation": {"samples_per_target": 3},
            },
            "arms": {"dat": {}, "random": {"settings": {"selection": {"score": "random"}}}},
            "suites": {"one": {"gap": gap} | suite},
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(tree))
        return {part.name: part.total for part in study_parts(read_study(str(path), []), DEVICE)}

    without, few, many = plan(None), plan({"behaviors": 10, "prompts": 1}), plan({"behaviors": 20, "prompts": 1})
    fresh, suite = "fresh prompts for the distribution gap", "suite one, each of 5 models"
    assert fresh not in without
    assert without[suite] < few[suite] < many[suite]
    # Twice the behaviors, of which each has its own draws: the rest of the stage is starts.
    recipe = read_study(str(tmp_path / "study.yaml"), []).suites["one"]
    stages = {stage.name: stage for stage in plan_run(recipe, DEVICE).stages}
    assert many[fresh] == pytest.approx(stages["fresh"].seconds)
    drawn = {role.role: role.calls for role in stages["fresh"].roles}
    # Three draws for the one target of a training behavior, and for each of the two of a held-out one.
    assert drawn["judge"] == 3 * (20 * 1 + 20 * 2)
    assert few[fresh] < many[fresh]
    # People's prompts are scored as well, but not those of a file that a model drew.
    scored = {}
    for in_gap in (True, False):
        files = [{"path": "builtin:demo-heldout-rewrites", "in_gap": in_gap}]
        scored[in_gap] = plan({"behaviors": 10, "prompts": 1}, attacks=["prompts"], prompts=files)[suite]
    assert scored[True] > scored[False]


def test_a_part_of_a_study_counts_its_own_runs(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    arms = {"dat": {}, "goals": {"settings": {"selection": {"source": "goals"}}}, "rounds": {"settings": {"rounds": 3}}}
    path.write_text(yaml.safe_dump({"name": "x", "seeds": [1, 2, 3], "arms": arms}))
    study = read_study(str(path), PLAIN_ARMS)
    whole = {part.name: part for part in study_parts(study, DEVICE)}
    part = {one.name: one for one in study_parts(study.part(["goals@*", "dat@2"]), DEVICE)}
    assert {name: one.times for name, one in part.items() if name.startswith("training")} == {
        "training of dat": 1,
        "training of goals": 3,
    }
    assert part["candidates, first for dat"].times == 1
    assert part["suite heldout, each of 5 models"].seconds == whole["suite heldout, each of 10 models"].seconds
    # Its total is one of its own.
    assert "one after the other" in study_plan_text(study.part(["goals@1"]), DEVICE)
