from __future__ import annotations

import json

import pytest

from dat_ray.config.loading import fingerprint, load_recipe
from dat_ray.data.rundir import open_run
from dat_ray.errors import InputError


def test_a_new_run_records_what_it_is(tmp_path) -> None:
    recipe = load_recipe("demo")
    run = open_run(str(tmp_path / "r"), recipe, resume=False)
    record = json.loads(open(run.record).read())
    assert record["fingerprint"] == fingerprint(recipe)
    assert record["recipe"]["sampler"]["steps"] == recipe.sampler.steps
    assert record["packages"]["pyarrow"]


def test_a_run_is_continued_only_when_asked(tmp_path) -> None:
    root = str(tmp_path / "r")
    recipe = load_recipe("demo")
    open_run(root, recipe, resume=True)
    with pytest.raises(InputError, match="--resume"):
        open_run(root, recipe, resume=False)
    assert open_run(root, recipe, resume=True).root == root


def test_another_recipe_is_refused_with_the_fields_that_differ(tmp_path) -> None:
    root = str(tmp_path / "r")
    open_run(root, load_recipe("demo", ["seed=1"]), resume=False)
    with pytest.raises(InputError, match="seed: 1 -> 2"):
        open_run(root, load_recipe("demo", ["seed=2"]), resume=True)


def test_a_folder_with_other_things_is_not_taken_over(tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        open_run(str(tmp_path), load_recipe("demo"), resume=False)
