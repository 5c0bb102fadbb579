"""A recipe goes through JSON, which knows no infinity: to run.json, and to workers on other nodes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dat_ray.config.adapt import AdaptRecipe, load_adapt_config
from dat_ray.config.loading import fingerprint, load_recipe, validate_known_fields
from dat_ray.config.schema import Recipe
from dat_ray.config.section import Section
from dat_ray.config.sources import annotated
from dat_ray.data.rundir import open_run, read_record
from dat_ray.errors import InputError
from tests.unit.config.test_fingerprint import full_recipe

# Beyond these ends nothing is limited, so that the end itself is no limit.
LIMITS = {
    "training.max_grad_norm": math.inf,
    "training.loss_clip": math.inf,
    "training.attack.radius": math.inf,
    "training.stop_retain": math.inf,
    "training.stop_away": -math.inf,
    "training.away_cutoff": -math.inf,
    "training.toward_cutoff": -math.inf,
    "selection.min_target_logprob": -math.inf,
    "evaluation.pgd.gradient_norm": math.inf,
    "evaluation.embedding.attack.radius": math.inf,
    "evaluation.attacker.endpoint.timeout": math.inf,
    "evaluation.attacker.endpoint.longest_wait": math.inf,
}
ATTACKER = "evaluation.attacker={model: m, backend: endpoint, endpoint: {url: 'http://localhost:1'}}"
WAYS = {math.inf: (".inf", "inf", "Infinity", "null"), -math.inf: ("-.inf", "-inf", "-Infinity", "null")}


def value_at(section: Any, path: str) -> Any:
    for name in path.split("."):
        section = getattr(section, name)
    return section


@pytest.mark.parametrize("field", LIMITS)
def test_a_limit_without_end_is_none_all_the_way(field: str, tmp_path: Path) -> None:
    recipes = [load_recipe("demo", [ATTACKER, f"{field}={text}"]) for text in WAYS[LIMITS[field]]]
    recipe, mark = recipes[0], fingerprint(recipes[0])
    assert recipes.count(recipe) == len(recipes)
    assert value_at(recipe, field) is None
    run = open_run(str(tmp_path / "run"), recipe, resume=False)
    (tmp_path / "shown.yaml").write_text(annotated(recipe))
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    json.dumps(recipe.model_dump(mode="json"), allow_nan=False)
    again = [
        Recipe.model_validate_json(recipe.model_dump_json()),
        read_record(run).recipe,
        load_recipe(str(tmp_path / "plain.yaml")),
        load_recipe(str(tmp_path / "shown.yaml")),
    ]
    assert [fingerprint(one) for one in again] == [mark] * len(again) == [run.fingerprint_of(one) for one in again]
    assert [value_at(one, field) for one in again] == [None] * len(again)


def test_a_run_that_was_begun_with_an_infinity_in_its_record_is_gone_on_with(tmp_path: Path) -> None:
    recipe = load_recipe("demo", ["training.loss_clip=.inf"])
    run = open_run(str(tmp_path), recipe, resume=False)
    record = json.loads(Path(run.record).read_text())
    record["recipe"]["training"]["loss_clip"] = math.inf
    Path(run.record).write_text(json.dumps(record | {"fingerprint": "0123456789abcdef"}))
    assert open_run(str(tmp_path), recipe, resume=True).fingerprint_of(recipe) == "0123456789abcdef"


def test_an_adaptation_without_clipping_reaches_its_workers() -> None:
    recipe = load_adapt_config("chat-infill", ["training.max_grad_norm=.inf"])
    assert AdaptRecipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert recipe.training.max_grad_norm is None


def numbers(tree: Any, prefix: str = "") -> Iterator[str]:
    """Dotted fields of a section that hold a number or nothing."""
    for name in type(tree).model_fields:
        value = getattr(tree, name)
        if isinstance(value, Section):
            yield from numbers(value, f"{prefix}{name}.")
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            yield f"{prefix}{name}"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_any_other_number_that_is_not_finite_is_refused_by_name(number: float) -> None:
    recipe = full_recipe()
    tree, refused = recipe.model_dump(mode="json"), set()
    for field in numbers(recipe):
        changed = json.loads(json.dumps(tree))
        *parents, leaf = field.split(".")
        node = changed
        for part in parents:
            node = node[part]
        node[leaf] = number
        if LIMITS.get(field.replace("judge.reader.", "evaluation.attacker.")) == number:
            Recipe.model_validate(changed)
            continue
        with pytest.raises(InputError) as caught:
            validate_known_fields(Recipe, changed)
        # A field for a text or a section says that instead.
        if str(caught.value).startswith(f"{field} = {number}: is no finite number: give one"):
            refused.add(field)
    assert {"training.epochs", "training.away_weight", "sampler.temperature", "cluster.trainer.num_cpus", "seed"} <= refused
    assert {"training.updates", "sampler.entropy_bound", "evaluation.inpainting_samples"} <= refused


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("target.template_options={depth: .inf}", "target.template_options.depth = inf: is no finite number: give one"),
        ("behaviors.where={score: .nan}", "score cannot be compared with nan: write a text, a number"),
    ],
)
def test_values_of_any_type_are_finite_too(setting: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("demo", [setting])
    assert told in str(caught.value)
