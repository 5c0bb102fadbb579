"""Writes docs/metrics.md, the fields of metrics.json as its model has them: python -m tests.unit.evaluation.metrics_page"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dat_ray.evaluation import results
from dat_ray.evaluation.results import Metrics

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def parts(model: type[BaseModel], seen: dict[type, None]) -> dict[type, None]:
    """The models that a model is made of, itself first, each once."""
    if model not in seen:
        seen[model] = None
        for annotation in typing.get_type_hints(model).values():
            for inner in leaves(annotation):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    parts(inner, seen)
    return seen


def leaves(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    inner = typing.get_args(annotation)
    if not inner:
        yield annotation
    for one in inner:
        yield from leaves(one)


NAMES = {str: "text", float: "number", int: "count", bool: "true or false", type(None): "null"}


def type_name(annotation: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(inner[0])
    if origin is dict:
        return f"{type_name(inner[1])} by name"
    if origin is list:
        return f"list of {type_name(inner[0])}"
    if inner:
        return " or ".join(type_name(one) for one in inner)
    return NAMES.get(annotation) or str(annotation.__name__)


def page() -> str:
    lines = ["# What metrics.json holds", "", *(results.__doc__ or "").strip().splitlines(), ""]
    lines += ["This page is made from the model; a test compares the two."]
    for part in parts(Metrics, {}):
        assert issubclass(part, BaseModel)
        lines += ["", f"## {part.__name__}", "", *(part.__doc__ or "").strip().splitlines(), ""]
        lines += ["| field | type | in files of every version | meaning |", "|---|---|---|---|"]
        for name, field in part.model_fields.items():
            always = "yes" if field.is_required() else "no"
            kind = type_name(field.annotation)
            lines.append(f"| `{name}` | {kind} | {always} | {field.description or ''} |")
    names = [one.name for one in dataclasses.fields(results.Diversity)]
    lines += ["", "## Diversity", "", "Of the prompts that a sampler drew: " + ", ".join(f"`{name}`" for name in names) + "."]
    lines += ["Each but the counts, the quantiles and the measure's name is `value`, `low`, `high` and `n`."]
    return "\n".join(line.strip() for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
