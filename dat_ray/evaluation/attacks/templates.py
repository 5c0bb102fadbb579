"""Jailbreak templates that people wrote: a user's own file, or a published one, with a slot where the request goes."""

from __future__ import annotations

from dat_ray.config.schema import Recipe
from dat_ray.data.ids import row_id
from dat_ray.data.table_files import TEXT, listed
from dat_ray.data.table_sources import open_source
from dat_ray.errors import InputError
from dat_ray.evaluation.attacks.base import Attack
from dat_ray.evaluation.questions import Question

FIELD = "evaluation.templates_path"
SLOT = "{goal}"
# Columns that may hold templates, and how published sets (GPTFuzzer's) write the slot.
COLUMNS, PUBLISHED_SLOT = ("template", "text"), "[INSERT PROMPT HERE]"


def load_templates(path: str) -> list[str]:
    """The column `template` or `text` of a table, or the lines of a text file, each with {goal} as its slot.

    Raises:
        InputError: no such column, no rows, or a template without a slot.
    """
    source = open_source(path, FIELD)
    column = next((name for name in (*COLUMNS, TEXT) if name in source.columns), None)
    if column is None:
        raise InputError(FIELD, path, f"has no column 'template', only {listed(source.columns)}: rename one")
    found = []
    for place, row, _ in source.rows([column]):
        template = row[column].replace(PUBLISHED_SLOT, SLOT) if isinstance(row[column], str) else ""
        if SLOT not in template:
            raise InputError(FIELD, path, f"{place} has no {SLOT}: write it where the request goes")
        found.append(template)
    if not found:
        raise InputError(FIELD, path, "holds no templates: add one a row")
    return found


class Templates(Attack):
    """Every goal in every template; other braces stay as they are."""

    name = "templates"
    title = "Jailbreak templates"
    description = "the goal in jailbreak templates that people wrote"
    needs = (FIELD,)
    in_order = True
    access = "manual"

    @classmethod
    def inputs(cls, recipe: Recipe) -> dict[str, str]:
        return {FIELD: row_id(*load_templates(recipe.evaluation.templates_path or ""))}

    def questions(self) -> list[Question]:
        templates = load_templates(self.config.templates_path or "")
        return [
            Question(self.name, one.behavior_id, index, one.goal, template.replace(SLOT, one.goal))
            for one in self.setup.behaviors
            for index, template in enumerate(templates)
        ]
