"""What a study looks at before it starts: each recipe's models, and each set of rows once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dat_ray.config.cluster import TimeoutsConfig
from dat_ray.config.loading import load_recipe
from dat_ray.config.schema import Recipe
from dat_ray.config.study import Study, read_study
from dat_ray.data.rundir import open_run
from dat_ray.errors import InputError
from dat_ray.pipeline import study as studying


def test_rows_are_looked_at_once_and_models_of_every_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole: list[str] = []
    rest: list[str] = []

    def noted(into: list[str]) -> Callable[[Recipe], None]:
        return lambda recipe: into.append(f"{recipe.training.updates} {recipe.behaviors.limit} {recipe.evaluation.attacks}")

    monkeypatch.setattr(studying, "check_inputs", noted(whole))
    monkeypatch.setattr(studying, "check_the_rest", noted(rest))
    tree = {
        "name": "x",
        "seeds": [1, 2],
        "settings": {"training": {"updates": 34}},
        "arms": {
            "one": {},
            "two": {"settings": {"training": {"updates": 5}}},
            "three": {"settings": {"behaviors": {"limit": 9}}},
        },
        "suites": {"heldout": {}, "direct": {"attacks": ["direct"]}},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tree))
    plan = read_study(str(path), [])
    studying._check_inputs(plan)
    both = ("direct", "inpainting")
    assert whole == [f"34 None {both}", f"34 9 {both}"]
    # Another arm, and another suite, of rows that were looked at; seeds change nothing.
    assert rest == [f"5 None {both}", "34 None ('direct',)"]


def test_the_rest_is_attacks_tasks_and_models(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    for name in ("check_attacks", "check_attack_files", "check_tasks", "check_attacked_goals", "check_models"):
        monkeypatch.setattr(studying, name, lambda *_, name=name: seen.append(name))
    studying.check_the_rest(load_recipe("demo"))
    assert seen == ["check_attacks", "check_attack_files", "check_tasks", "check_attacked_goals", "check_models"]
    # Of another arm's rewrites nothing was read with the rows that both arms have.
    mixture = load_recipe("demo", ["selection.source=mixture", "selection.rewrites=no-such.jsonl"])
    with pytest.raises(InputError, match=r"selection.rewrites = 'no-such.jsonl': no such file"):
        studying.check_the_rest(mixture)


def test_an_arm_that_is_put_before_the_others_does_not_shut_them_out_of_what_is_shared(tmp_path: Path) -> None:
    def plan(**arms: object) -> Study:
        path = tmp_path / "study.yaml"
        settings = {"training": {"retain": {"inpainted_share": 0.0}}}
        path.write_text(
            yaml.safe_dump({"name": "x", "seeds": [1], "settings": settings, "reference": "one", "arms": arms}, sort_keys=False)
        )
        return read_study(str(path), [])

    [first] = plan(one={}).runs
    [late, _] = plan(other={"settings": {"selection": {"score": "random"}, "cluster": {"local_cpus": 3}}}, one={}).runs
    root = str(tmp_path / "study")
    jobs, later = studying._shared_jobs(first, root), studying._shared_jobs(late, root)
    assert [job.stages for job in jobs] == [("generate",), ("retain",)]
    assert [job.root for job in later] == [job.root for job in jobs]
    for job, after in zip(jobs, later, strict=True):
        assert studying.as_begun(job) == first.recipe
        open_run(job.root, first.recipe, resume=True)
        with pytest.raises(InputError, match="another recipe"):
            open_run(after.root, after.recipe, resume=True)
        begun = studying.as_begun(after)
        assert open_run(after.root, begun, resume=True).root == job.root
        assert begun == first.recipe.model_copy(update={"cluster": late.recipe.cluster})
        # What changes no row is as the job has it: a batch that did not fit is smaller when it goes on.
        smaller = late.recipe.model_copy(update={"target": late.recipe.target.model_copy(update={"batch_size": 3})})
        again = studying.as_begun(replace(after, recipe=smaller))
        assert (again.target.batch_size, again.selection) == (3, first.recipe.selection)
        assert open_run(after.root, again, resume=True).root == job.root
        patient = TimeoutsConfig(no_progress=7200, engine_start=77)
        lenient = late.recipe.generation.model_copy(update={"max_error_rate": 0.5})
        patient_recipe = late.recipe.model_copy(update={"timeouts": patient, "generation": lenient})
        again = studying.as_begun(replace(after, recipe=patient_recipe))
        assert (again.timeouts, again.generation.max_error_rate) == (patient, 0.5)
        assert open_run(after.root, again, resume=True).root == job.root
        # What makes other rows is not taken for the same, whatever its folder is called.
        foreign = late.recipe.model_copy(
            update={"seed": 7, "target": late.recipe.target.model_copy(update={"max_new_tokens": 9})}
        )
        assert studying.as_begun(replace(after, recipe=foreign)) == foreign
