"""Finds attacks: every class of `dat_ray.evaluation.attacks` by its name, anybody else's as `package.module:Class`.

A class of somebody else is code that a recipe makes this machine run: callers have asked for trust before they look one up
(`dat_ray.config.section.Outside.CLASS`).
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import pyarrow as pa

from dat_ray.config.evaluation import EvaluationConfig
from dat_ray.config.schema import Recipe
from dat_ray.config.study import Study
from dat_ray.data.schemas import HELD_OUT
from dat_ray.errors import InputError, error_line
from dat_ray.evaluation import attacks
from dat_ray.evaluation.attacks.base import Attack
from dat_ray.evaluation.outcomes import SHARE, has_share
from dat_ray.evaluation.questions import HARMLESS_PROMPTS, behaviors_of

FIELD = "evaluation.attacks"
# Part of the names of shards.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


@cache
def builtin_attacks() -> Mapping[str, type[Attack]]:
    """Attacks of this package by name, in alphabetical order."""
    found: dict[str, type[Attack]] = {}
    for entry in pkgutil.iter_modules(attacks.__path__):
        module = importlib.import_module(f"{attacks.__name__}.{entry.name}")
        for value in vars(module).values():
            own = _is_attack(value) and value.__module__ == module.__name__ and "name" in vars(value)
            if own and value.name not in HARMLESS_PROMPTS:
                assert value.name not in found, f"two attacks are called {value.name}"
                found[value.name] = value
    return dict(sorted(found.items()))


def find_attack(entry: str) -> type[Attack]:
    """The class that an entry of `evaluation.attacks` names.

    Raises:
        InputError: there is none, or it is no complete attack.
    """
    builtin = builtin_attacks()
    if ":" in entry:
        return _imported(entry)
    if entry not in builtin:
        close = difflib.get_close_matches(entry, builtin, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(FIELD, entry, f"is no attack: {hint}name one of {', '.join(builtin)}, or package.module:Class")
    return builtin[entry]


def _imported(entry: str) -> type[Attack]:
    module, _, name = entry.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except Exception as error:
        # Somebody else's module: whatever it raises is its user's to read.
        raise InputError(
            FIELD, entry, f"cannot be imported ({error_line(error)}): see PYTHONPATH and the class's name"
        ) from error
    if not _is_attack(found):
        raise InputError(FIELD, entry, "is no subclass of dat_ray.evaluation.attacks.base.Attack: derive it from that class")
    kind: type[Attack] = found
    absent = [fact for fact in ("name", "title", "description") if not isinstance(getattr(kind, fact, None), str)]
    if absent:
        raise InputError(FIELD, entry, f"does not say its {' and '.join(absent)}: set them in the class, as texts")
    if not _NAME.fullmatch(kind.name) or kind.name in {*HARMLESS_PROMPTS, *builtin_attacks()}:
        remedy = "is taken" if _NAME.fullmatch(kind.name) else "is not made of lower-case letters, digits and underscores"
        raise InputError(FIELD, entry, f"its name {kind.name!r} {remedy}: give it another")
    return kind


def _is_attack(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Attack) and value is not Attack


def chosen_attacks(config: EvaluationConfig) -> dict[str, type[Attack]]:
    """The attacks of a recipe by name, in its order.

    Raises:
        InputError: one of them does not exist, or two have one name.
    """
    found: dict[str, type[Attack]] = {}
    for entry in config.attacks:
        for kind in find_attack(entry).of_recipe(config):
            if kind.name in found:
                raise InputError(FIELD, entry, f"has the name {kind.name} of another attack of the recipe: leave one out")
            found[kind.name] = kind
    return found


def drawing_attacks(config: EvaluationConfig) -> set[str]:
    """Names of the recipe's attacks whose prompts a sampler draws."""
    return {name for name, kind in chosen_attacks(config).items() if kind.prompts_folder is not None}


def check_attacks(recipe: Recipe) -> None:
    """Looks up a recipe's attacks and what each needs, before anything is started for them.

    Raises:
        InputError: an attack that does not exist, or the recipe lacks what it needs.
    """
    for name, kind in chosen_attacks(recipe.evaluation).items():
        for field in kind.needs:
            if _value(recipe, field) is None:
                raise InputError(FIELD, name, f"needs {field}: give it, or leave the attack out")


def check_attack_files(recipe: Recipe) -> None:
    """Reads the files of a recipe's attacks, so that a bad one is named before anything is started.

    Raises:
        InputError: one cannot be read.
    """
    for kind in chosen_attacks(recipe.evaluation).values():
        kind.inputs(recipe)


def check_attacked_goals(recipe: Recipe, behaviors: pa.Table) -> None:
    """Looks whether the files of a recipe's attacks serve its held-out behaviors, before anything is started.

    Args:
        recipe: whose attacks they are.
        behaviors: BEHAVIORS.

    Raises:
        InputError: a file is for other behaviors.
    """
    goals = {one.behavior_id: one.goal for one in behaviors_of(behaviors, HELD_OUT)}
    for kind in chosen_attacks(recipe.evaluation).values():
        kind.check_goals(recipe, goals)


def _value(recipe: Recipe, field: str) -> Any:
    found: Any = recipe
    for name in field.split("."):
        found = None if found is None else getattr(found, name)
    return found


def check_primary(study: Study) -> None:
    """Looks whether a study will have its primary measure and that of its fronts; an attack's variants are known only afterwards.

    Raises:
        InputError: it will not, or a suite's attack does not exist.
    """
    known = ["boa", "over_refusal"]
    for recipe in study.suites.values():
        check_attacks(recipe)
        known += _measures(recipe)
        known += ["over_refusal_inpainted"] if recipe.behaviors.harmless_heldout is not None else []
    attack, _, variant = study.config.primary.partition("/")
    if attack not in known or variant.endswith(SHARE):
        remedy = f"no suite measures it: choose one of {', '.join(dict.fromkeys(known))}"
        raise InputError("primary", study.config.primary, remedy)
    for name, recipe in study.front_suites.items():
        check_attacks(recipe)
        along = ["boa", *_measures(recipe)]
        assert study.config.fronts is not None
        if study.config.fronts.measure not in along:
            remedy = f"its attacks do not measure it: choose one of {', '.join(along)}"
            raise InputError(f"{name}.measure", study.config.fronts.measure, remedy)


def _measures(recipe: Recipe) -> list[str]:
    """What is measured of a suite's attacks, variants aside."""
    return [key for name in chosen_attacks(recipe.evaluation) for key in (name, *([name + SHARE] if has_share(name) else []))]
