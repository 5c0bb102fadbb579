"""Each field of a recipe that can lead out of a run directory is marked, or stands in the list of those that need no mark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from dat_ray.config.adapt import AdaptRecipe
from dat_ray.config.loading import load_recipe
from dat_ray.config.models import TargetConfig
from dat_ray.config.names import is_fingerprint, is_model_name, is_name
from dat_ray.config.schema import Recipe
from dat_ray.config.section import Outside, expand_home
from dat_ray.data.trust import outside_values

# Models are read as a stranger's, whoever names them. A stored chat template is the text itself.
NEEDS_NO_MARK = {
    "sampler.model",
    "target.model",
    *(f"{judge}.reader.model" for judge in ("judge", "evaluation.second_judge", "evaluation.refusal_judge")),
    "evaluation.attacker.model",
    "evaluation.heldout_sampler.model",
    "encoder.model",
}
LEADS_OUT = re.compile(r"(^|_)(path|file|folder|dir|url|uri|env|host|address|endpoint)$")


def sections(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from sections(part)


def is_path(annotation: object, metadata: object) -> bool:
    return "expand_home" in f"{annotation!r} {metadata!r}"


def fields(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, bool, bool]]:
    """Dotted name, whether the field is marked, and whether it seems to lead out."""
    for name, field in kind.model_fields.items():
        inner = list(sections(field.annotation))
        for section in inner:
            yield from fields(section, f"{prefix}{name}.")
        if not inner:
            marked = any(isinstance(mark, Outside) for mark in field.metadata)
            yield f"{prefix}{name}", marked, is_path(field.annotation, field.metadata) or bool(LEADS_OUT.search(name))


def test_every_field_that_leads_out_is_decided_on() -> None:
    model = TargetConfig.model_fields["model"]
    assert is_path(model.annotation, model.metadata)
    assert expand_home("x") == "x"
    found = list(fields(Recipe))
    assert {name for name, marked, leads in found if leads and not marked} == NEEDS_NO_MARK
    marked = {name for name, marked, _ in found if marked}
    assert {"judge.reader.endpoint.url", "evaluation.attacker.endpoint.api_key_env", "tracking.wandb"} <= marked


def test_what_a_shipped_recipe_leads_to_is_not_outside() -> None:
    everything = Recipe.model_fields
    assert outside_values(load_recipe("demo"), everything) == []
    local = outside_values(load_recipe("demo", ["behaviors.path=b.csv", "behaviors.heldout.path=hf:o/n"]), everything)
    assert [(one.field, one.value) for one in local] == [("behaviors.path", "b.csv"), ("behaviors.heldout.path", "hf:o/n")]
    assert outside_values(load_recipe("demo", ["behaviors.path=b.csv"]), ["behavior", "judge"]) == []


def test_a_stored_text_stays_on_its_line() -> None:
    recipe = load_recipe("demo", ['tracking.wandb="a\\nb\\e[31m"'])
    [value] = outside_values(recipe, ["tracking"])
    assert str(value) == r"tracking.wandb = 'a\nb\x1b[31m' (tracking server's project)"


@pytest.mark.parametrize("name", ["dat", "My run 2", "x-1.5_b@7+c", "répété", "Al's (v2): lr=0.1, a", "名前", "0", "a" * 128])
def test_names(name: str) -> None:
    assert is_name(name)
    assert Recipe.model_validate(load_recipe("demo").model_dump() | {"name": name}).name == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "/x", "~", "-x", ".x", "a\n", "a\x1b[0m", "a ", "a" * 129, "[b]"]
)
def test_no_names(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(ValidationError, match="a name begins with"):
        Recipe.model_validate(load_recipe("demo").model_dump() | {"name": name})
    with pytest.raises(ValidationError, match="a name begins with"):
        AdaptRecipe.model_validate({"name": name})


def test_other_names() -> None:
    assert is_model_name("dat@seed3")
    assert not any(map(is_model_name, ("../a", "a-b", "a/b", "", None)))
    assert is_fingerprint("0123456789abcdef")
    assert not any(map(is_fingerprint, ("../0123456789abc", "0123456789ABCDEF", "0123456789abcde", 5)))
