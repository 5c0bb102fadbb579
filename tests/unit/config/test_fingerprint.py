from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import create_model

from dat_ray.config.loading import FINGERPRINT_VERSION, difference, fingerprint, load_recipe, recipe_text, with_overrides
from dat_ray.config.models import SamplerConfig
from dat_ray.config.schema import Recipe
from dat_ray.config.section import Leaf, Section, leaves
from dat_ray.config.training import TrainingConfig
from dat_ray.errors import InputError
from tests.unit.config.recipe_fields import TABLE, fields

READER = {"model": "m", "backend": "endpoint", "endpoint": {"url": "http://localhost:1"}}


def full_recipe() -> Recipe:
    """A recipe in which every optional section is given."""
    tree = load_recipe("demo").model_dump(mode="json")
    tree["judge"] = {"name": "harmbench", "reader": READER}
    tree["evaluation"] |= {
        "attacker": {"model": "m"},
        "heldout_sampler": {"model": "m"},
        "second_judge": {"name": "xstest", "reader": {"model": "m"}},
    }
    return Recipe.model_validate(tree)


def replaced(section: Section, path: str, value: Any) -> Section:
    """The section with one value exchanged, whatever validators say."""
    name, _, rest = path.partition(".")
    return section.model_copy(update={name: replaced(getattr(section, name), rest, value) if rest else value})


def other_value(leaf: Leaf) -> Any:
    if leaf.value == "given":
        return None
    if isinstance(leaf.value, bool):
        return not leaf.value
    if isinstance(leaf.value, int | float):
        return leaf.value + 1
    return {"another": "entry"} if isinstance(leaf.value, dict) else [9] if isinstance(leaf.value, list) else "another"


def changed_leaves() -> Iterator[tuple[str, Leaf, Recipe]]:
    recipe = full_recipe()
    for path, leaf in leaves(recipe):
        changed = replaced(recipe, path, other_value(leaf))
        assert isinstance(changed, Recipe)
        yield path, leaf, changed


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_each_field_alone_changes_the_fingerprint_exactly_if_rows_depend_on_it() -> None:
    recipe = full_recipe()
    base = fingerprint(recipe)
    seen = {path: (leaf, changed) for path, leaf, changed in changed_leaves()}
    for path, (leaf, changed) in seen.items():
        assert (fingerprint(changed) != base) is leaf.changes_rows, path
        assert bool(difference(recipe, changed)) is leaf.changes_rows, path
    free = {path for path, (leaf, _) in seen.items() if not leaf.changes_rows}
    assert {"target.batch_size", "target.kv_cache_gib", "training.micro_rows", "evaluation.attacker.batch_size"} < free
    assert {"judge.reader.endpoint.concurrency", "cluster.judge.num_cpus", "name", "sampler.tensor_parallel"} < free
    counted = {path for path, (leaf, _) in seen.items() if leaf.changes_rows}
    assert {"target.dtype", "sampler.backend", "judge.reader.endpoint.url", "generation.rows_per_block", "seed"} < counted


def test_each_field_has_been_decided_on() -> None:
    """A new field counts until it is marked. A default that changes, of a field that counts, needs another version."""
    table = json.loads(TABLE.read_text())
    assert fields() == table["fields"], (
        "a field is new, gone, or has another default or mark. Decide whether rows depend on it (dat_ray/config/section.py); "
        "raise FINGERPRINT_VERSION if a default changed on which rows depend; then `python -m tests.unit.config.recipe_fields`"
    )
    assert table["fingerprint_version"] == FINGERPRINT_VERSION


def later(section: type[Section], **new_fields: Any) -> type[Section]:
    """The section as a later version might have it."""
    return create_model(f"Later{section.__name__}", __base__=section, **new_fields)


def test_a_field_that_a_later_version_adds_leaves_the_fingerprint_alone_at_its_default() -> None:
    class Extra(Section):
        strength: float = 0.5
        labels: tuple[str, ...] = ()

    sampler = later(SamplerConfig, novelty=(float, 0.0), extra=(Extra | None, None))
    training = later(TrainingConfig, extra=(Extra, Extra(strength=2.0)))
    recipe_type: Any = later(Recipe, sampler=(sampler, ...), training=(training, ...), rounds=(int, 1))
    tree = load_recipe("demo").model_dump(mode="json")

    def made(**changes: Any) -> str:
        changed = {name: tree[name] | value if isinstance(value, dict) else value for name, value in changes.items()}
        return fingerprint(recipe_type.model_validate(tree | changed))

    base = fingerprint(load_recipe("demo"))
    assert base == made() == made(rounds=1, sampler={"novelty": 0.0, "extra": None}, training={"extra": {"strength": 2.0}})
    others = [
        made(rounds=2),
        made(sampler={"novelty": 0.1}),
        made(sampler={"extra": {}}),
        made(sampler={"extra": {"labels": ["a"]}}),
        # Written without its field it is not what stands there when it is left out.
        made(training={"extra": {}}),
        made(training={"extra": {"strength": 3.0}}),
    ]
    assert len({base, *others}) == len(others) + 1


def test_how_a_fingerprint_is_formed_is_fixed() -> None:
    """Written down: whoever forms fingerprints in another way changes the version, and this value with it."""
    tree = {"name": "r", "seed": 3, "behaviors": {"path": "b", "heldout": {"path": "h"}}, "sampler": {"model": "s", "steps": 8}}
    recipe = Recipe.model_validate(tree | {"target": {"model": "t", "batch_size": 2}, "training": {"retain": {"path": "r"}}})
    assert (FINGERPRINT_VERSION, fingerprint(recipe)) == (2, "dff7c25c6b2d5fd1")


def test_a_default_that_changed_is_a_difference_of_what_was_stored_whole() -> None:
    stored = load_recipe("demo").model_dump(mode="json")
    stored["evaluation"]["bootstrap"] = 1000  # as if it had been the default then, and was not written in the YAML
    assert difference(Recipe.model_validate(stored), load_recipe("demo")) == ["evaluation.bootstrap: 1000 -> 2000"]


def test_an_optional_section_that_comes_or_goes_is_a_difference() -> None:
    base, full = load_recipe("demo"), full_recipe()
    found = difference(base, full)
    assert "evaluation.second_judge: None -> 'given'" in found
    assert "evaluation.attacker.model: 'absent' -> 'm'" in found
    assert not any("batch_size" in line for line in found)


def test_the_round_of_earlier_versions_opens_where_it_is_the_first(tmp_path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(recipe_text("demo") + "\nround: 0\n")
    assert load_recipe(str(path)) == load_recipe("demo")
    with pytest.raises(InputError, match=r"round = 1: is no field of a recipe any more: leave it out") as caught:
        load_recipe(str(path), ["round=1"])
    assert "\n" not in str(caught.value)


def test_a_recorded_recipe_takes_overrides_that_change_no_row() -> None:
    recipe = full_recipe()
    assert with_overrides(recipe, ["target.batch_size=4"]) == replaced(recipe, "target.batch_size", 4)
    assert with_overrides(recipe, []) is recipe
    with pytest.raises(InputError, match=r"seed: 20261123 -> 4.*would change rows"):
        with_overrides(recipe, ["target.batch_size=4", "seed=4"])
