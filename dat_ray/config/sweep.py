"""A grid over a recipe: which runs a sweep is made of. No torch, no ray."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import Field

from dat_ray.config.loading import fingerprint, load_settings, recipe_text
from dat_ray.config.schema import Recipe
from dat_ray.config.section import Section
from dat_ray.config.yaml_text import load_yaml
from dat_ray.errors import InputError

OPTION = "--grid"
# What candidates and the base model's evaluation are made from: points in which these agree share both.
EVALUATION = ("seed", "behaviors", "sampler", "target", "judge", "generation", "encoder", "evaluation")


class SweepConfig(Section):
    """How a sweep runs."""

    parallel: Annotated[int, Field(gt=0)] = Field(
        1, description="points at the same time; each asks for all pools, and its driver runs on the node of the sweep's own"
    )


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        label: what tells it from the others.
        recipe: resolved.
    """

    name: str
    label: str
    recipe: Recipe


@dataclass(frozen=True)
class Plan:
    """A whole sweep: the recipe without the grid, the grid, and its points in order."""

    base: Recipe
    grid: dict[str, list[Any]]
    points: list[Point]
    config: SweepConfig


def read_sweep(name_or_path: str, settings: Sequence[str], grid: Sequence[str], parallel: int | None = None) -> Plan:
    """Reads a recipe and the grid over it.

    Args:
        name_or_path: a recipe.
        settings: `a.b=value`, for every point.
        grid: `a.b=v1,v2,...`, each value read as YAML.
        parallel: points at the same time; None for the default.

    Raises:
        InputError: a field that is no field, no values, a field twice, or two points that are the same run.
    """
    base = load_settings(Recipe, recipe_text(name_or_path), name_or_path, settings)
    axes: dict[str, list[_Value]] = {}
    for text in grid:
        field, found = _axis(text)
        if field in axes:
            raise InputError(OPTION, text, f"names {field} twice: give all its values at once")
        axes[field] = found
    combinations = list(itertools.product(*axes.values()))
    labels = _labels(list(axes), combinations)
    recipes = []
    for combination in combinations:
        values = [f"{field}={json.dumps(value.meant)}" for field, value in zip(axes, combination, strict=True)]
        recipes.append(load_settings(Recipe, recipe_text(name_or_path), name_or_path, [*settings, *values]))
    points = list(map(Point, _folders(labels, recipes), labels, recipes))
    seen: dict[str, str] = {}
    for point in points:
        mark = fingerprint(point.recipe)
        if mark in seen:
            same = f"{seen[mark]} and {point.label} are the same run: vary a field that changes results"
            raise InputError(OPTION, list(grid), same)
        seen[mark] = point.label
    config = load_settings(SweepConfig, "{}", OPTION, [] if parallel is None else [f"parallel={parallel}"])
    return Plan(base, {field: [value.written for value in found] for field, found in axes.items()}, points, config)


def stage_fingerprint(recipe: Recipe, sections: Sequence[str]) -> str:
    """16 hex digits that change with what a stage reads of a recipe."""
    return fingerprint(recipe, sections)


def shared_recipe(plan: Plan, recipe: Recipe, sections: Sequence[str]) -> Recipe:
    """The sweep's recipe with a point's sections: the same for all points that share them, whatever their order."""
    return plan.base.model_copy(update={name: getattr(recipe, name) for name in sections})


class _Value(NamedTuple):
    """A value of a grid: as points are named by it, 1e-4 as that text, and as it is set, where unquoted 1e-4 is a number."""

    written: Any
    meant: Any


def _axis(text: str) -> tuple[str, list[_Value]]:
    field, equals, values = text.partition("=")
    if not equals or not field.strip() or not values.strip():
        raise InputError(OPTION, text, "write section.field=value,value,...")
    try:
        found, meant = load_yaml(f"[{values}]"), load_yaml(f"[{values}]", exponents=True)
        json.dumps(found)
    except (yaml.YAMLError, ValueError, TypeError):  # TypeError: a date or a set, which no field takes
        raise InputError(OPTION, text, "the values are not readable as a YAML list; quote them") from None
    unlike = [value for index, value in enumerate(found) if value in found[:index]]
    if unlike:
        raise InputError(OPTION, text, f"names the value {unlike[0]!r} twice")
    return field.strip(), [_Value(*both) for both in zip(found, meant, strict=True)]


def _labels(fields: Sequence[str], combinations: Sequence[Sequence[_Value]]) -> list[str]:
    """What tells the points from each other; numbers in full only where six digits are the same."""
    short = _short_names(fields)

    def label(combination: Sequence[_Value], show: Callable[[Any], str]) -> str:
        return ", ".join(f"{short[field]} = {show(value.written)}" for field, value in zip(fields, combination, strict=True))

    rounded = [label(combination, _shown) for combination in combinations]
    times = Counter(rounded)
    return [text if times[text] == 1 else label(one, repr) for text, one in zip(rounded, combinations, strict=True)]


def _folders(labels: Sequence[str], recipes: Sequence[Recipe]) -> list[str]:
    """Names of the points' folders: those of one spelling, as of "Hi!" and "Hi?", have a part of the fingerprint behind it."""
    names = [re.sub(r"[^A-Za-z0-9._-]+", "_", label.replace(" = ", "-").replace(", ", "--")) for label in labels]
    times = Counter(names)
    return [
        name if times[name] == 1 else f"{name}-{fingerprint(recipe)[:8]}" for name, recipe in zip(names, recipes, strict=True)
    ]


def _short_names(fields: Sequence[str]) -> dict[str, str]:
    """The shortest ends of the fields' names that tell them apart."""
    found = {}
    for field in fields:
        parts = field.split(".")
        ends = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        others = [other for other in fields if other != field]
        found[field] = next(end for end in ends if not any(other == end or other.endswith(f".{end}") for other in others))
    return found


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
