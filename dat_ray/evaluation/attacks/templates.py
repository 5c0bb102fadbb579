"""A user's own file of jailbreak templates, each with {goal} where the request goes."""

from __future__ import annotations

from collections.abc import Iterable

from dat_ray.data.sources import open_source
from dat_ray.data.tables import TEXT, listed
from dat_ray.errors import InputError
from dat_ray.evaluation.attacks.questions import Behavior, Question

FIELD = "evaluation.templates_path"
SLOT = "{goal}"


def load_templates(path: str) -> list[str]:
    """The column `template` of a table, or the lines of a text file.

    Raises:
        InputError: no such column, no rows, or a template without {goal}.
    """
    source = open_source(path, FIELD)
    column = TEXT if source.columns == (TEXT,) else "template"
    if column not in source.columns:
        raise InputError(FIELD, path, f"has no column 'template', only {listed(source.columns)}: rename one")
    found = []
    for place, row in source.rows([column]):
        if not isinstance(row[column], str) or SLOT not in row[column]:
            raise InputError(FIELD, path, f"{place} has no {SLOT}: write it where the request goes")
        found.append(row[column])
    if not found:
        raise InputError(FIELD, path, "holds no templates: add one a row")
    return found


def templated(behaviors: Iterable[Behavior], templates: Iterable[str]) -> list[Question]:
    """Every goal in every template; other braces stay as they are."""
    found = list(templates)
    return [
        Question("templates", one.behavior_id, index, one.goal, template.replace(SLOT, one.goal))
        for one in behaviors
        for index, template in enumerate(found)
    ]
