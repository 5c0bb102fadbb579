"""Where a recipe's values come from: paper, public code, or our choice; and a recipe printed with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from dat_ray.config.schema import Recipe

NOT_SAID = "not said"


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all fields that hold no further section."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def source_of(recipe: Recipe, field: str) -> str | None:
    """The field's own source, else that of the nearest section around it; None without any."""
    while field:
        if field in recipe.sources:
            return recipe.sources[field]
        field = field.rpartition(".")[0]
    return None


def annotated(recipe: Recipe, overrides: Sequence[str] = ()) -> str:
    """The resolved recipe as YAML, each value with its source behind it.

    Args:
        recipe: resolved; one without `sources` is printed plainly.
        overrides: `--set` arguments that went into it; what they set has the command line as its source.
    """
    tree = recipe.model_dump(mode="json", exclude={"sources"})
    if not recipe.sources:
        return yaml.safe_dump(tree, sort_keys=False, width=110)
    told = {override.partition("=")[0].strip() for override in overrides}
    lines: list[str] = []
    _write(tree, "", recipe, told, lines)
    return "\n".join(lines) + "\n"


def _write(tree: dict[str, Any], prefix: str, recipe: Recipe, told: set[str], lines: list[str]) -> None:
    indent = "  " * prefix.count(".")
    for key, value in tree.items():
        field = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            lines.append(f"{indent}{key}:")
            _write(value, f"{field}.", recipe, told, lines)
            continue
        # A bare value ends with a document mark.
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("...\n").strip()
        shown = f"{key}: {text}"
        set_here = any(field == name or field.startswith(f"{name}.") for name in told)
        source = "set on the command line" if set_here else source_of(recipe, field) or NOT_SAID
        lines.append(f"{(indent + shown):<58} # {source}")
