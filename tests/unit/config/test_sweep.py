from __future__ import annotations

import pytest

from dat_ray.config.loading import fingerprint, load_recipe
from dat_ray.config.sweep import EVALUATION, read_sweep, shared_recipe, stage_fingerprint
from dat_ray.errors import InputError
from tests.plain_demo import PLAIN


def test_a_grid_is_every_combination_in_order_with_short_names() -> None:
    grid = ["training.retain_weight=1,2.5", "training.attack.steps=0,2", "selection.keep=1"]
    plan = read_sweep("demo", ["seed=3"], grid)
    assert [point.label for point in plan.points] == [
        "retain_weight = 1, steps = 0, keep = 1",
        "retain_weight = 1, steps = 2, keep = 1",
        "retain_weight = 2.5, steps = 0, keep = 1",
        "retain_weight = 2.5, steps = 2, keep = 1",
    ]
    assert [point.name for point in plan.points][:1] == ["retain_weight-1--steps-0--keep-1"]
    assert plan.config.parallel == 1
    # A point is the run that the same settings make.
    same = load_recipe("demo", ["seed=3", "training.retain_weight=2.5", "training.attack.steps=2", "selection.keep=1"])
    assert fingerprint(plan.points[-1].recipe) == fingerprint(same)


def test_values_are_text_where_they_are_quoted_and_points_are_named_as_they_are_written() -> None:
    plan = read_sweep("demo", [], ["training.updates=1e1,20", 'target.system_prompt="1984","1e3"'])
    assert [(one.recipe.training.updates, one.recipe.target.system_prompt) for one in plan.points] == [
        (10, "1984"),
        (10, "1e3"),
        (20, "1984"),
        (20, "1e3"),
    ]
    assert plan.points[1].name == "updates-1e1--system_prompt-1e3"
    assert plan.grid["training.updates"] == ["1e1", 20]


def test_points_of_one_spelling_have_folders_of_their_own() -> None:
    marks = ['generation.neutral_prompt="a: b","a; b","c","ü","ö"', "training.updates=3,4"]
    points = read_sweep("demo", [], marks).points
    names = [point.name for point in points]
    assert len(set(names)) == len(points) == 10
    assert names[4:6] == ["neutral_prompt-c--updates-3", "neutral_prompt-c--updates-4"], "as ever where it is the only one"
    assert names[2] == f"neutral_prompt-a_b--updates-3-{fingerprint(points[2].recipe)[:8]}"
    assert [name.rpartition("-")[0] for name in names[6:]] == [f"neutral_prompt-_--updates-{n}" for n in (3, 4, 3, 4)]
    # Whatever order the values are given in.
    turned = read_sweep("demo", [], ['generation.neutral_prompt="ö","ü","c","a; b","a: b"', marks[1]]).points
    assert {point.label: point.name for point in turned} == {point.label: point.name for point in points}


def test_numbers_that_round_to_one_are_told_apart() -> None:
    points = read_sweep("demo", [], ["training.learning_rate=0.00012345671,0.00012345672,0.5000000001"]).points
    assert [point.name for point in points] == ["learning_rate-0.00012345671", "learning_rate-0.00012345672", "learning_rate-0.5"]
    assert [point.label for point in points][1:] == ["learning_rate = 0.00012345672", "learning_rate = 0.5"]


def test_fields_of_one_name_are_told_apart() -> None:
    plan = read_sweep("demo", [], ["sampler.steps=4,8", "training.attack.steps=2"])
    assert plan.points[0].label == "sampler.steps = 4, attack.steps = 2"


def test_points_share_what_they_agree_in() -> None:
    plan = read_sweep("demo", [], ["training.attack.steps=0,2", "sampler.temperature=0,0.5"])
    marks = [stage_fingerprint(point.recipe, EVALUATION) for point in plan.points]
    assert marks[0] == marks[2] != marks[1] == marks[3]
    shared = {fingerprint(shared_recipe(plan, point.recipe, EVALUATION)) for point in plan.points}
    assert len(shared) == 2


def test_points_whose_candidates_have_other_similarities_share_nothing() -> None:
    plan = read_sweep("demo", PLAIN, ["encoder={},null"])
    marks = {stage_fingerprint(point.recipe, EVALUATION) for point in plan.points}
    assert len(marks) == 2


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (["training.retain_weight"], "section.field=value"),
        (["training.retain_weight="], "section.field=value"),
        (["training.retain_wait=1"], "did you mean 'retain_weight'"),
        (["training.retain_weight=1,1"], "1 twice"),
        (["training.retain_weight=1", "training.retain_weight=2"], "training.retain_weight twice"),
        (["cluster.target.threads=1,2"], "are the same run"),
        (["training.retain_weight=many"], "retain_weight"),
    ],
)
def test_a_bad_grid_is_one_line(grid: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read_sweep("demo", [], grid)
    assert "\n" not in str(caught.value)
