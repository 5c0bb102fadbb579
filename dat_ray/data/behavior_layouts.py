"""Which column of a table of behaviors means what, for public sets that are known by their columns and for others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from dat_ray.config.data import BehaviorSource, Value
from dat_ray.data.table_files import TEXT
from dat_ray.data.table_sources import BUILTIN
from dat_ray.errors import InputError

STANDARD, COPYRIGHT = "standard", "copyright"


@dataclass(frozen=True)
class Layout:
    """Names of the columns; `optional` ones may be absent from the table.

    `function` is HarmBench's kind of behavior. Contextual rows are about the text in `context`, copyright rows are judged by
    comparison with a protected text: both are left out unless `where` asks for them.
    """

    goal: str
    target: str | None = None
    refusal: str | None = None
    category: str | None = None
    id: str | None = None
    function: str | None = None
    context: str | None = None
    optional: frozenset[str] = frozenset()


LAYOUTS = {
    "builtin": Layout(
        goal="goal",
        target="targets",
        refusal="refusal",
        category="category",
        id="id",
        optional=frozenset({"refusal", "category", "id"}),
    ),
    "harmbench": Layout(
        goal="Behavior",
        category="SemanticCategory",
        id="BehaviorID",
        function="FunctionalCategory",
        context="ContextString",
        optional=frozenset({"SemanticCategory", "FunctionalCategory", "ContextString"}),
    ),
    "advbench": Layout(goal="goal", target="target"),
    "jailbreakbench": Layout(goal="Goal", target="Target", category="Category", id="Behavior", optional=frozenset({"Category"})),
    "strongreject": Layout(goal="forbidden_prompt", category="category", optional=frozenset({"category"})),
    "simple_safety_tests": Layout(goal="prompts_final", category="harm_area", id="id", optional=frozenset({"harm_area", "id"})),
    "ailuminate": Layout(
        goal="prompt_text", category="hazard", id="release_prompt_id", optional=frozenset({"hazard", "release_prompt_id"})
    ),
    "list": Layout(goal=TEXT),
}
# Columns by which a layout is known, the first that fits.
_KNOWN_BY = {
    "builtin": {"goal", "targets"},
    "harmbench": {"Behavior", "BehaviorID"},
    "jailbreakbench": {"Goal", "Target", "Behavior"},
    "strongreject": {"forbidden_prompt"},
    "simple_safety_tests": {"prompts_final"},
    "ailuminate": {"prompt_text", "hazard"},
}


def choose_layout(cfg: BehaviorSource, columns: Sequence[str], field: str) -> Layout:
    """The layout of the recipe's format, or the one that the columns tell, less the optional columns that the table lacks.

    Raises:
        InputError: `columns` are given for a layout that has its own.
    """
    name = _sniff(cfg, columns) if cfg.format == "auto" else cfg.format
    if name == "table":
        return Layout(**cfg.columns.model_dump())
    if given := cfg.columns.model_dump(exclude_defaults=True):
        raise InputError(f"{field}.columns", given, f"read only with format table, not {name}: remove one of them")
    layout = LAYOUTS[name]
    absent = {
        role.name: None
        for role in fields(layout)
        if (column := getattr(layout, role.name)) in layout.optional and column not in columns
    }
    return replace(layout, **absent)  # type: ignore[arg-type]


def _sniff(cfg: BehaviorSource, columns: Sequence[str]) -> str:
    """The format that the columns tell, unless the recipe names columns of its own."""
    if cfg.columns.model_dump(exclude_defaults=True):
        return "table"
    if cfg.path.startswith(BUILTIN):
        return "builtin"
    if tuple(columns) == (TEXT,):
        return "list"
    return next((name for name, needed in _KNOWN_BY.items() if needed <= set(columns)), "table")


def same_value(cell: object, value: Value) -> bool:
    """Whether a cell has the value that `where` asks for: true is true, however it is written, and 1 is 1.0."""
    if cell is None:
        return False
    if isinstance(cell, str) and isinstance(value, str):
        return cell.strip() == value.strip()
    if isinstance(cell, str) != isinstance(value, str):
        text, other = (cell, value) if isinstance(cell, str) else (value, cell)
        text = str(text).strip()
        if isinstance(other, bool):
            return text.casefold() == str(other).casefold()
        if isinstance(other, int | float):
            try:
                return float(text) == other
            except ValueError:
                return False
        return text == str(other)
    return isinstance(cell, bool) == isinstance(value, bool) and cell == value
