"""Every field of a recipe, as a table that somebody has looked at: `python -m tests.unit.config.recipe_fields` writes it again.

A field is `rows` where rows depend on it and `free` where they don't; its default stands behind it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dat_ray.config.loading import FINGERPRINT_VERSION
from dat_ray.config.schema import Recipe
from dat_ray.config.section import NO_EFFECT_ON_ROWS, Section, leaves

TABLE = Path(__file__).with_suffix(".json")


def sections(kind: type[Section]) -> Iterator[type[Section]]:
    """A section and all that its fields can hold, those behind a field without effect left out."""
    yield kind
    for field in kind.model_fields.values():
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        if NO_EFFECT_ON_ROWS not in field.metadata:
            for option in options:
                if isinstance(option, type) and issubclass(option, Section):
                    yield from sections(option)


def default_of(field: FieldInfo) -> str:
    """As it is printed; of a section what in it differs from the section's own defaults."""
    if isinstance(field.default, Section):
        return repr({path: leaf.value for path, leaf in leaves(field.default) if not leaf.at_default})
    return "required" if field.default is PydanticUndefined else repr(field.default)


def fields() -> dict[str, str]:
    """`Section.field` -> `free`, or `rows, default ...`."""
    return {
        f"{kind.__name__}.{name}": "free" if NO_EFFECT_ON_ROWS in field.metadata else f"rows, default {default_of(field)}"
        for kind in dict.fromkeys(sections(Recipe))
        for name, field in kind.model_fields.items()
    }


if __name__ == "__main__":
    TABLE.write_text(json.dumps({"fingerprint_version": FINGERPRINT_VERSION, "fields": fields()}, indent=1) + "\n")
