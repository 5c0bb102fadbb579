"""What a study's file may say, and what its runs are."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dat_ray.config.loading import fingerprint, list_recipes
from dat_ray.config.study import candidates_mark, read_study, retain_mark, trained_by
from dat_ray.errors import InputError
from tests.plain_demo import PLAIN_ARMS


def written(tmp_path: Path, **changes: object) -> str:
    tree: dict[str, object] = {
        "name": "small",
        "recipe": "demo",
        "seeds": [1, 2],
        "settings": {"training": {"updates": 3}},
        "arms": {
            "cat": {
                "about": "goals",
                "settings": {"selection": {"source": "goals"}, "training": {"retain": {"inpainted_share": 0.0}}},
            },
            "dat": {"settings": {"training": {"updates": 4}}},
        },
        "suites": {"heldout": {}, "direct": {"attacks": ["direct"]}},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (tree | changes).items() if value is not None}))
    return str(path)


def test_runs_are_arms_by_seeds_and_suites_follow_the_reference(tmp_path: Path) -> None:
    plan = read_study(written(tmp_path, reference="dat"), [])
    assert [run.model for run in plan.runs] == ["cat@1", "cat@2", "dat@1", "dat@2"]
    assert [run.recipe.training.updates for run in plan.runs] == [3, 3, 4, 4]
    assert [run.recipe.seed for run in plan.runs] == [1, 2, 1, 2]
    assert plan.runs[0].recipe.selection.source == "goals"
    assert plan.suites["heldout"] == plan.runs[2].recipe
    assert plan.suites["direct"].evaluation.attacks == ("direct",)
    assert plan.suites["direct"].training == plan.runs[2].recipe.training


def test_text_that_looks_like_a_number_stays_text(tmp_path: Path) -> None:
    settings = {"target": {"system_prompt": "1066"}, "behaviors": {"where": {"label": "007"}}, "training": {"updates": 3}}
    arms = {"one": {}, "two": {"settings": {"generation": {"neutral_prompt": "12.50"}}}}
    plan = read_study(written(tmp_path, name="2031", arms=arms, settings=settings), [])
    assert {run.recipe.name for run in plan.runs} == {"2031"}
    assert {run.recipe.target.system_prompt for run in plan.runs} == {"1066"}
    assert plan.runs[0].recipe.behaviors.where == {"label": "007"}
    assert plan.runs[-1].recipe.generation.neutral_prompt == "12.50"


def test_numbers_with_an_exponent_are_numbers_in_a_study_too(tmp_path: Path) -> None:
    path = Path(written(tmp_path))
    path.write_text(path.read_text().replace("updates: 3", "updates: 1e2\n    learning_rate: 3e-5"))
    recipe = read_study(str(path), ["settings.training.weight_decay=1e-2"]).runs[0].recipe
    assert (recipe.training.updates, recipe.training.learning_rate, recipe.training.weight_decay) == (100, 3e-5, 0.01)


def test_what_arms_share_is_told_by_what_makes_it(tmp_path: Path) -> None:
    arms = {
        "one": {"settings": {"training": {"attack": {"steps": 0}}}},
        "two": {"settings": {"generation": {"samples_per_target": 97}}},
        "three": {"settings": {"training": {"retain": {"answer_tokens": 5}}}},
        "four": {
            "settings": {
                "training": {"retain": {"inpainted_share": 0.2}},
                "behaviors": {"harmless": {"path": "builtin:demo-harmless"}},
            }
        },
    }
    plan = read_study(written(tmp_path, arms=arms, settings={}), [*PLAIN_ARMS, "settings.encoder={}"])
    candidates = {run.model: candidates_mark(run.recipe) for run in plan.runs}
    assert candidates["one@1"] == candidates["three@1"] != candidates["two@1"]
    assert candidates["one@1"] != candidates["one@2"]
    retained = {run.model: retain_mark(run.recipe) for run in plan.runs}
    # The base model's answers do not depend on a seed; in-painted rows are each run's own.
    assert retained["one@1"] == retained["one@2"] == retained["two@1"] != retained["three@1"]
    assert retained["four@1"] is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": [1, 1]}, "seeds = [1, 1]: names 1 twice"),
        ({"seeds": []}, "seeds"),
        ({"arms": {"base": {}}}, "is not 'base'"),
        ({"arms": {"a@1": {}}}, "letters, digits"),
        ({"arms": {"../x": {}}}, "letters, digits"),
        ({"arms": {}}, "arms"),
        ({"reference": "mat"}, "reference = 'mat': is no arm: choose one of cat, dat"),
        ({"arms": {"a": {}, "b": {}}}, "arms.b = 'b': is the same run as a"),
        ({"arms": {"a": {"settings": {"training": {"updatez": 1}}}}}, "arms.a: training.updatez"),
        ({"arms": {"a": {"settings": {"training": {"updatez": 1}}}}}, "did you mean 'updates'"),
        ({"arms": {"a": {"recipe": "demo2"}}}, "arms.a: recipe = 'demo2'"),
        ({"settings": {"seed": 3}}, "settings.seed = 3: is the study's own: set `seeds`"),
        ({"arms": {"a": {"settings": {"name": "x"}}}}, "arms.a.settings.name"),
        (
            {"arms": {"a": {}, "b": {"settings": {"target": {"max_new_tokens": 9}}}}},
            "arms.b: target.max_new_tokens = 9: is 24 in a",
        ),
        ({"arms": {"a": {}, "b": {"settings": {"evaluation": {"attacks": ["direct"]}}}}}, "arms.b: evaluation.attacks"),
        ({"arms": {"a": {}, "b": {"settings": {"behaviors": {"heldout": {"limit": 3}}}}}}, "arms.b: behaviors.heldout.limit"),
        ({"suites": {"x": {"atacks": []}}}, "suites.x: evaluation.atacks"),
        ({"suites": {"../x": {}}}, "a name begins with"),
        ({"arms": {"a": {"settings": {"training": {"updates": "many"}}}}}, "arms.a: training.updates = 'many'"),
        ({"fronts": {"every": 0}}, "fronts.every"),
        ({"fronts": {"over_refusal": 1.0}}, "fronts.over_refusal"),
        ({"fronts": {"settings": {"atacks": 1}}}, "fronts: evaluation.atacks"),
        ({"fronts": {"settings": {"gap": {}}}}, "fronts.settings = 'gap': is not measured of adapters along a training"),
        ({"fronts": {}, "suites": {"fronts": {}}}, "suites.fronts = 'fronts': is the name of the suite of `fronts`"),
        (
            {"fronts": {}, "settings": {"behaviors": {"over_refusal": None}, "evaluation": {"kl_rows": 0}}},
            "needs look-alikes: give behaviors.over_refusal",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_study(written(tmp_path, **changes), [])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fronts_keep_adapters_of_every_run_and_have_a_cheap_suite(tmp_path: Path) -> None:
    settings = {
        "training": {"updates": 3},
        "evaluation": {"kl_rows": 4, "inpainting_samples": 3, "gap": {"prompts": 2}},
        "behaviors": {"harmless_heldout": {"path": "builtin:demo-harmless-heldout"}},
    }
    fronts = {"every": 2, "attacks": ["direct"], "settings": {"max_new_tokens": 5}}
    plan = read_study(written(tmp_path, settings=settings, fronts=fronts), [])
    assert {run.recipe.training.keep_every for run in plan.runs} == {2}
    assert plan.front is not None
    evaluation = plan.front.evaluation
    assert (evaluation.attacks, evaluation.kl_rows, evaluation.max_new_tokens) == (("direct",), 0, 5)
    assert evaluation.gap is None
    assert evaluation.inpainting_samples == 3
    assert (plan.front.target.backend, plan.front.behaviors.harmless_heldout) == ("torch", None)
    assert plan.runs[1].after(8) == "cat@2u8"
    own = read_study(written(tmp_path, fronts={"backend": None}), [])
    assert own.front is not None
    assert own.front.target == own.runs[0].recipe.target
    # What is kept changes no row: runs are the same with fronts and without.
    without = read_study(written(tmp_path), [])
    assert (without.front, without.front_suites) == (None, {})
    assert [fingerprint(run.recipe) for run in without.runs] == [fingerprint(run.recipe) for run in own.runs]
    assert {run.recipe.training.keep_every for run in without.runs} == {None}


def test_dates_are_no_settings(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: x\narms: {a: {settings: {training: {updates: 2026-01-01}}}}\n")
    with pytest.raises(InputError, match=r"arms\.a\.settings\.training\.updates .*quote it"):
        read_study(str(path), [])


def test_settings_of_the_command_line_change_the_file(tmp_path: Path) -> None:
    plan = read_study(written(tmp_path), ["seeds=[5]", "arms.cat.settings.training.updates=9"])
    assert [(run.model, run.recipe.training.updates) for run in plan.runs] == [("cat@5", 9), ("dat@5", 4)]


@pytest.mark.parametrize("name", list_recipes("studies"))
def test_studies_of_the_package_can_be_read(name: str) -> None:
    plan = read_study(name, [])
    assert len({fingerprint(run.recipe) for run in plan.runs}) == len(plan.runs)
    assert plan.config.name == name
    # Arms compare at one budget, an arm in rounds included.
    assert len({run.recipe.rounds * (run.recipe.training.updates or 0) for run in plan.runs}) == 1


def test_a_part_has_some_runs_and_all_else_of_the_whole(tmp_path: Path) -> None:
    whole = read_study(written(tmp_path), [])
    seeds = {run.seed for run in whole.runs}
    first = min(seeds)
    part = whole.part([f"*@{first}"])
    assert whole.is_whole
    assert not part.is_whole
    assert [run.model for run in part.runs] == [run.model for run in whole.runs if run.seed == first]
    assert (part.suites, part.reference, part.config) == (whole.suites, whole.reference, whole.config)
    assert whole.part(["*"]) == whole
    arm = whole.runs[-1].arm
    assert {run.model for run in whole.part([f"{arm}@*", whole.runs[0].model]).runs} == {
        whole.runs[0].model,
        *(f"{arm}@{seed}" for seed in seeds),
    }
    with pytest.raises(InputError, match=r"--only = 'dat': is no run of this study \(ARM@SEED\): choose of "):
        whole.part(["dat"])


def test_adapters_along_a_training_are_told_by_their_run() -> None:
    assert trained_by("dat_rounds@12") == "dat_rounds@12"
    assert trained_by("dat_rounds@12u36") == "dat_rounds@12"
    assert trained_by("u.u@3u4") == "u.u@3"
