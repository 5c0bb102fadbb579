"""Reads recipes: YAML in, a checked `Recipe` out, or one line that says what to change; and what tells two of them apart."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dat_ray.config.schema import Recipe
from dat_ray.config.section import STORED, Section, leaves
from dat_ray.config.yaml_text import MAX_CHARACTERS, load_yaml
from dat_ray.errors import InputError, error_line
from dat_ray.utf8 import REPLACEMENT, clean_text

Settings = TypeVar("Settings", bound=Section)

# Raise it whenever the default of a field that changes rows does: fields at their default are in no fingerprint.
# Version 1 was a hash of all fields, those at their default too.
FINGERPRINT_VERSION = 2


def list_recipes(kind: str = "recipes") -> list[str]:
    """Names of the recipes that come with the package.

    Args:
        kind: folder of the package data: `recipes` of runs, or `adaptations` of samplers.
    """
    folder = resources.files("dat_ray.config") / kind
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def recipe_text(name_or_path: str, kind: str = "recipes") -> str:
    """The YAML of a named recipe or of a file.

    Raises:
        InputError: no such recipe and no such file.
    """
    known, field = list_recipes(kind), "study" if kind == "studies" else "recipe"
    if name_or_path in known:
        return (resources.files("dat_ray.config") / kind / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    path = Path(name_or_path)
    if _is_file(path):
        if path.stat().st_size > 4 * MAX_CHARACTERS:
            raise InputError(field, name_or_path, f"is larger than {4 * MAX_CHARACTERS >> 20} MiB: give a recipe")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(field, name_or_path, f"not UTF-8 at byte {error.start}: save it as UTF-8") from error
        except OSError as error:
            raise InputError(field, name_or_path, f"cannot be read ({error_line(error)}): see who may") from error
    close = difflib.get_close_matches(name_or_path, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise InputError(field, name_or_path, f"{hint}give a YAML file or one of: {', '.join(known)}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return False


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Loads a recipe by name or path and applies `--set` overrides.

    Args:
        name_or_path: a name of `list_recipes()` or a YAML file.
        overrides: strings `a.b=value`; the value is read as YAML, unquoted 1e-4 as a number.

    Raises:
        InputError: unreadable YAML, unknown key, wrong type or unit, inconsistent values.
    """
    return load_settings(Recipe, recipe_text(name_or_path), name_or_path, overrides)


def load_settings(root: type[Settings], text: str, name: str, overrides: Sequence[str], *, exponents: bool = False) -> Settings:
    """Checks a YAML text with overrides against a model of `dat_ray.config`.

    Args:
        root: the model.
        text: YAML.
        name: of the text, for messages.
        overrides: as for `load_recipe`.
        exponents: see `load_yaml`; for a text whose values become overrides themselves. A recipe's own fields take either.

    Raises:
        InputError: as `load_recipe`.
    """
    try:
        tree = load_yaml(text, exponents=exponents)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date like 2025-13-01
        raise InputError(root.NOUN, name, f"not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(root.NOUN, name, f"a {root.NOUN} is a mapping of sections; {root.EXAMPLE}")
    tree = _unshared(tree)
    for override in overrides:
        _apply_override(tree, override)
    tree = _whole_characters(tree)
    try:
        return root.model_validate(tree)
    except ValidationError as error:
        raise _first_problem(error, root) from None


def with_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe of a run directory, with overrides that change none of its rows.

    Raises:
        InputError: as `load_recipe`, or an override that changes rows.
    """
    if not overrides:
        return recipe
    after = load_settings(Recipe, yaml.safe_dump(recipe.model_dump(mode="json")), recipe.name, overrides)
    fields = difference(recipe, after)
    if fields:
        remedy = "would change rows, and a run directory's recipe is fixed: name a recipe and another --run-dir"
        raise InputError("--set", "; ".join(fields), remedy)
    return after


def validate_known_fields(root: type[Settings], tree: dict[str, Any]) -> tuple[Settings, tuple[str, ...]]:
    """Checks a stored tree of any version: what this version does not know of it is left out.

    Returns:
        The settings, and the dotted names of what was left out.

    Raises:
        InputError: as `load_recipe`, but for unknown keys.
    """
    tree = _whole_characters(tree)
    unknown: list[str] = []
    while True:
        try:
            return root.model_validate(tree, context=STORED), tuple(unknown)
        except ValidationError as error:
            extra = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
            if not extra:
                raise _first_problem(error, root) from None
            for *parents, leaf in extra:
                node: Any = tree
                for part in parents:
                    node = node[part]
                del node[leaf]
                # A stored name may hold anything; what is printed stays on its line.
                unknown.append(".".join(ascii(part)[1:-1] if isinstance(part, str) else str(part) for part in (*parents, leaf)))


def _unshared(tree: Any) -> Any:
    """A copy in which a mapping that YAML's `*alias` uses twice is two mappings: an override changes one place."""
    if isinstance(tree, dict):
        return {key: _unshared(value) for key, value in tree.items()}
    return [_unshared(value) for value in tree] if isinstance(tree, list) else tree


def _whole_characters(tree: Any, place: str = "") -> Any:
    """The tree with both halves of a surrogate pair, as YAML writes them in JSON's way, put together.

    Raises:
        InputError: a half alone, which no file can hold.
    """
    if isinstance(tree, dict):
        return {key: _whole_characters(value, f"{place}.{key}".lstrip(".")) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_whole_characters(value, place) for value in tree]
    if not isinstance(tree, str):
        return tree
    text = clean_text(tree)
    if text.count(REPLACEMENT) > tree.count(REPLACEMENT):
        raise InputError(place, tree, "holds half a character: remove it, or write both halves")
    return text


def _apply_override(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted.strip():
        raise InputError("--set", override, "write it as section.field=value")
    try:
        value = load_yaml(text, exponents=True)
    except (yaml.YAMLError, ValueError):
        raise InputError("--set", override, "the value is not readable as YAML; quote it") from None
    *parents, leaf = dotted.strip().split(".")
    node = tree
    for key in parents:
        # A section that is left out may be written as null.
        child = node[key] = {} if node.get(key) is None else node[key]
        if not isinstance(child, dict):
            raise InputError("--set", override, f"{key} is a value, not a section")
        node = child
    node[leaf] = value


def _first_problem(error: ValidationError, root: type[Section]) -> InputError:
    """Turns pydantic's report into one line, with the nearest known key where a key is unknown."""
    problem = error.errors()[0]
    location = [str(part) for part in problem["loc"]]
    infinite = problem["type"] == "finite_number"
    if infinite and location[-1] in ("float", "int"):
        location.pop()  # which kind of JSON's values it would be
    dotted = ".".join(location) or root.NOUN
    if problem["type"] == "extra_forbidden":
        known = _known_keys(root, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return InputError(dotted, problem["input"], f"unknown key; {hint}")
    if problem["type"] == "missing":
        return InputError(dotted, None, f"required, and missing from the {root.NOUN}")
    message = "is no finite number: give one" if infinite else problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("dict_type", "model_type"):
        message = "is no mapping: give names of fields with their values"
    value = problem["input"] if not isinstance(problem["input"], dict | BaseModel) else Ellipsis
    description = _description(root, location)
    return InputError(dotted, value, message[:1].lower() + message[1:] + (f" ({description})" if description else ""))


def _field_models(root: type[BaseModel], location: Sequence[str]) -> Iterator[tuple[type[BaseModel], str]]:
    model: Any = root
    for part in location:
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or part not in model.model_fields:
            return
        yield model, part
        annotation = model.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _known_keys(root: type[BaseModel], section: Sequence[str]) -> list[str]:
    model: Any = root
    for owner, part in _field_models(root, section):
        annotation = owner.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), root)
    return sorted(model.model_fields)


def _description(root: type[BaseModel], location: Sequence[str]) -> str:
    found = list(_field_models(root, location))
    if not found:
        return ""
    model, part = found[-1]
    return (model.model_fields[part].description or "") if part == location[-1] else ""


def fingerprint(section: Section, sections: Collection[str] | None = None) -> str:
    """16 hex digits that change with anything that changes rows.

    A field with its default and the same field written out give the same value, and so does a recipe of before the field
    was there: fields at their default are left out. Should a default itself change, `FINGERPRINT_VERSION` has to.

    Args:
        section: a recipe, or a part of one.
        sections: names of the fields of `section` that are looked at; None for all.
    """
    settings = {
        path: leaf.value
        for path, leaf in leaves(section)
        if leaf.changes_rows and not leaf.at_default and (sections is None or path.split(".")[0] in sections)
    }
    text = json.dumps([FINGERPRINT_VERSION, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(before: Recipe, after: Recipe) -> list[str]:
    """Dotted names, with both values, of the fields in which two recipes ask for different rows.

    All fields are compared, those at their default too: a recipe that was stored whole tells what its defaults were.
    """
    old, new = ({path: leaf.value for path, leaf in leaves(recipe) if leaf.changes_rows} for recipe in (before, after))
    absent = "absent"
    return [
        f"{key}: {old.get(key, absent)!r} -> {new.get(key, absent)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    ]
