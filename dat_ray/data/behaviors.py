"""Behaviors: harmful goals with affirmative targets and refusals, the held-out ones, and harmless look-alikes.

Layouts that are known by their columns: HarmBench, AdvBench, JailbreakBench and the builtin sets;
any other table is read with the names in `columns`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import pyarrow as pa

from dat_ray.config.data import BehaviorsConfig, BehaviorSource
from dat_ray.data.ids import row_id
from dat_ray.data.schemas import BEHAVIORS
from dat_ray.data.sources import BUILTIN, Row, open_source, read_json
from dat_ray.data.text import near_duplicates
from dat_ray.errors import InputError


@dataclass(frozen=True)
class NearDuplicate:
    """A training behavior that was dropped, and the most similar held-out one (token-set Jaccard)."""

    train_id: str
    heldout_id: str
    similarity: float


@dataclass(frozen=True)
class BehaviorSet:
    """All behaviors of a recipe.

    Attributes:
        table: schema BEHAVIORS, one row a (behavior, target), splits train, heldout and over_refusal in that
            order, each in the order of its table.
        dropped: training behaviors too close to a held-out one, one entry each; they are not in ``table``.
        blank_targets: empty texts in the lists of targets, which were left out; HarmBench's adversarial-training
            targets hold eleven.
    """

    table: pa.Table
    dropped: list[NearDuplicate]
    blank_targets: int


@dataclass(frozen=True)
class _Behavior:
    behavior_id: str
    goal: str
    category: str | None
    source: str
    targets: tuple[str, ...]
    blank_targets: int
    refusal: str


@dataclass(frozen=True)
class _Layout:
    """Names of the columns; `optional` ones may be absent from the table.

    `function` is HarmBench's kind of behavior: contextual and copyright rows need more than a goal and are left out.
    """

    goal: str
    target: str | None = None
    refusal: str | None = None
    category: str | None = None
    id: str | None = None
    function: str | None = None
    optional: frozenset[str] = frozenset()


_LAYOUTS = {
    "builtin": _Layout(
        goal="goal",
        target="targets",
        refusal="refusal",
        category="category",
        id="id",
        optional=frozenset({"refusal", "category", "id"}),
    ),
    "harmbench": _Layout(
        goal="Behavior",
        category="SemanticCategory",
        id="BehaviorID",
        function="FunctionalCategory",
        optional=frozenset({"SemanticCategory", "FunctionalCategory"}),
    ),
    "advbench": _Layout(goal="goal", target="target"),
    "jailbreakbench": _Layout(goal="Goal", target="Target", category="Category", id="Behavior", optional=frozenset({"Category"})),
}
_NO_TARGET = "has no target, or one that is no text: write a text or a list of texts"


def load_behaviors(cfg: BehaviorsConfig) -> BehaviorSet:
    """Reads all splits and keeps training apart from evaluation.

    A training goal whose token-set Jaccard with a held-out goal is ``cfg.near_duplicate`` or more, or that is
    equal to one after normalization, is dropped.

    Raises:
        InputError: a source cannot be read, a row lacks what it needs, an id occurs twice, or no training
            behavior is left.
    """
    constant = cfg.refusal == "constant"
    train = _Reader(cfg, "behaviors").behaviors(cfg.default_refusal, constant)
    heldout = _Reader(cfg.heldout, "behaviors.heldout").behaviors(cfg.default_refusal, constant)
    harmless = [] if cfg.over_refusal is None else _Reader(cfg.over_refusal, "behaviors.over_refusal").goals()
    blank = sum(behavior.blank_targets for behavior in (*train, *heldout))
    dropped = _too_close(train, heldout, cfg.near_duplicate)
    gone = {pair.train_id for pair in dropped}
    train = [behavior for behavior in train if behavior.behavior_id not in gone]
    if not train:
        problem = f"all {len(gone)} training behaviors are near-duplicates of held-out ones"
        raise InputError("behaviors.path", cfg.path, f"{problem}: choose another set, or raise behaviors.near_duplicate")
    splits = {"train": train, "heldout": heldout, "over_refusal": harmless}
    _check_ids_across(splits)
    rows = [
        {
            "behavior_id": behavior.behavior_id,
            "goal": behavior.goal,
            "category": behavior.category,
            "source": behavior.source,
            "split": split,
            "target_index": index,
            "target": target,
            "refusal": behavior.refusal,
        }
        for split, behaviors in splits.items()
        for behavior in behaviors
        for index, target in enumerate(behavior.targets)
    ]
    return BehaviorSet(pa.Table.from_pylist(rows, schema=BEHAVIORS), dropped, blank)


def _too_close(train: Sequence[_Behavior], heldout: Sequence[_Behavior], threshold: float) -> list[NearDuplicate]:
    pairs = near_duplicates([one.goal for one in train], [one.goal for one in heldout], threshold)
    closest: dict[int, tuple[float, int]] = {}
    for i, j, similarity in pairs:
        if i not in closest or similarity > closest[i][0]:
            closest[i] = similarity, j
    return [NearDuplicate(train[i].behavior_id, heldout[j].behavior_id, similarity) for i, (similarity, j) in closest.items()]


def _check_ids_across(splits: dict[str, list[_Behavior]]) -> None:
    """Later stages know a behavior by its id alone, so an id belongs to one split."""
    owner: dict[str, str] = {}
    for split, behaviors in splits.items():
        for behavior in behaviors:
            other = owner.setdefault(behavior.behavior_id, split)
            if other != split:
                problem = f"stands for a behavior of {other} and for one of {split}"
                remedy = "remove it from one, or leave columns.id out so that ids are hashes of the goals"
                raise InputError("behaviors.columns.id", behavior.behavior_id, f"{problem}: {remedy}")


class _Reader:
    """Reads one source; ``field`` is the dotted name of its section in the recipe, for messages."""

    def __init__(self, cfg: BehaviorSource, field: str) -> None:
        self.cfg, self.field = cfg, field
        self.source = open_source(cfg.path, f"{field}.path")

    def goals(self) -> list[_Behavior]:
        """Goals alone, as of harmless prompts: one empty target, an empty refusal."""
        return self._rows(replace(self._layout(), target=None, refusal=None))

    def behaviors(self, default_refusal: str, constant: bool) -> list[_Behavior]:
        """Goals with targets and refusals, each from a column or from a file of its own, or one refusal for all."""
        layout = self._layout()
        if self.cfg.targets_path is not None:
            layout = replace(layout, target=None)
        elif layout.target is None:
            remedy = "HarmBench keeps its targets in a JSON file {BehaviorID: target}: name that file"
            raise InputError(f"{self.field}.targets_path", None, remedy)
        found = self._rows(layout)
        if self.cfg.targets_path is not None:
            found = _with_targets(found, self.cfg.targets_path, f"{self.field}.targets_path")
        if self.cfg.refusals_path is not None:
            found = _with_refusals(found, self.cfg.refusals_path, f"{self.field}.refusals_path")
        count = self.cfg.targets_per_behavior
        return [
            replace(one, targets=one.targets[:count], refusal=(not constant and one.refusal) or default_refusal) for one in found
        ]

    def _layout(self) -> _Layout:
        """The format's layout, less the optional columns that the table lacks."""
        cfg, present = self.cfg, set(self.source.columns)
        name = self._sniff() if cfg.format == "auto" else cfg.format
        if name == "table":
            columns = cfg.columns
            return _Layout(columns.goal, columns.target, columns.refusal, columns.category, columns.id)
        if given := cfg.columns.model_dump(exclude_defaults=True):
            raise InputError(f"{self.field}.columns", given, f"read only with format table, not {name}: remove one of them")
        layout = _LAYOUTS[name]
        absent = {
            one.name: None
            for one in fields(layout)
            if (column := getattr(layout, one.name)) in layout.optional and column not in present
        }
        return replace(layout, **absent)  # type: ignore[arg-type]

    def _sniff(self) -> str:
        """The format that the columns tell, unless the recipe names columns of its own."""
        present = set(self.source.columns)
        if self.cfg.columns.model_dump(exclude_defaults=True):
            return "table"
        if self.cfg.path.startswith(BUILTIN) or {"goal", "targets"} <= present:
            return "builtin"
        if {"Behavior", "BehaviorID"} <= present:
            return "harmbench"
        if {"Goal", "Target", "Behavior"} <= present:
            return "jailbreakbench"
        return "table"

    def _rows(self, layout: _Layout) -> list[_Behavior]:
        """The first `limit` behaviors that the layout and `where` let through; all rows are checked."""
        roles = ("goal", "target", "refusal", "category", "id", "function")
        named: dict[str, str] = {f"columns.{role}": getattr(layout, role) for role in roles if getattr(layout, role)}
        named |= {f"where.{column}": column for column in self.cfg.where}
        for where, column in named.items():
            if column not in self.source.columns:
                problem = f"{self.source.name} has no such column, only {_listed(self.source.columns)}"
                raise InputError(f"{self.field}.{where}", column, f"{problem}: correct the name, or set the format")
        found: dict[str, _Behavior] = {}
        places: dict[str, str] = {}
        for row in self.source.rows(list(dict.fromkeys(named.values()))):
            if layout.function is not None and row.values[layout.function] not in (None, "", "standard"):
                continue
            if any(str(row.values[column]) != value for column, value in self.cfg.where.items()):
                continue
            one = self._behavior(row, layout)
            if one.behavior_id in found:
                problem = f"{row.place} of {self.source.name} has the id or the goal of {places[one.behavior_id]}"
                remedy = "keep one row a behavior, with a list of targets"
                raise InputError(f"{self.field}.path", self.cfg.path, f"{problem}, {one.behavior_id!r}: {remedy}")
            found[one.behavior_id], places[one.behavior_id] = one, row.place
        if not found:
            condition = self.cfg.where or f"{layout.function} 'standard'"
            raise InputError(f"{self.field}.path", self.cfg.path, f"has no row with {condition}: choose another table")
        return list(found.values())[: self.cfg.limit]

    def _behavior(self, row: Row, layout: _Layout) -> _Behavior:
        goal = self._cell(row, "goal", layout.goal)
        refusal = None if layout.refusal is None else row.values[layout.refusal]
        if refusal is not None and not isinstance(refusal, str):
            raise self._bad(row, "refusal", layout.refusal, "is no text: write a string there, or nothing")
        targets = Targets(("",), 0)
        if layout.target is not None:
            targets = parse_targets(row.values[layout.target])
            if not targets.texts:
                raise self._bad(row, "target", layout.target, f"{_NO_TARGET}, or remove the row")
        category = None if layout.category is None else row.values[layout.category]
        return _Behavior(
            behavior_id=row_id(goal) if layout.id is None else self._cell(row, "id", layout.id, numbers=True),
            goal=goal,
            category=None if category is None else str(category).strip() or None,
            source=self.source.name,
            targets=targets.texts,
            blank_targets=targets.blank,
            refusal=(refusal or "").strip(),
        )

    def _cell(self, row: Row, role: str, column: str, numbers: bool = False) -> str:
        value = row.values[column]
        if numbers and isinstance(value, int):
            value = str(value)
        if value is not None and not isinstance(value, str):
            raise self._bad(row, role, column, f"is a {type(value).__name__}: write a text there")
        if value is None or not value.strip():
            raise self._bad(row, role, column, "is empty: fill it in, or remove the row")
        return value.strip()

    def _bad(self, row: Row, role: str, column: str | None, problem: str) -> InputError:
        return InputError(f"{self.field}.columns.{role}", column, f"{row.place} of {self.source.name} {problem}")


class Targets(NamedTuple):
    """Targets of one behavior, without outer spaces, and how many empty ones were left out."""

    texts: tuple[str, ...]
    blank: int


def parse_targets(value: Any) -> Targets:
    """Targets of a cell: a text, a list of texts, or a text that holds a JSON list of texts.

    Empty texts are left out and counted. There are no texts at all where the value holds anything but texts.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            # An ordinary text may begin with a bracket, as in "[Verse 1] ...".
            value = [value]
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) for one in found):
        return Targets((), 0)
    texts = tuple(one.strip() for one in found if one.strip())
    return Targets(texts, len(found) - len(texts))


def _with_targets(behaviors: Sequence[_Behavior], path: str, field: str) -> list[_Behavior]:
    content = read_json(path, field)
    if not isinstance(content, dict):
        raise InputError(field, path, "no object: write {BehaviorID: text or list of texts}")
    found = []
    for one in behaviors:
        if one.behavior_id not in content:
            remedy = "add it, or name the file that belongs to the behaviors"
            raise InputError(field, path, f"no target for behavior {one.behavior_id!r}: {remedy}")
        targets = parse_targets(content[one.behavior_id])
        if not targets.texts:
            raise InputError(field, path, f"entry {one.behavior_id!r} {_NO_TARGET}")
        found.append(replace(one, targets=targets.texts, blank_targets=targets.blank))
    return found


def _with_refusals(behaviors: Sequence[_Behavior], path: str, field: str) -> list[_Behavior]:
    """Refusals from a table with the columns Behavior (the goal) and Safe_Response."""
    source, columns = open_source(path, field), ("Behavior", "Safe_Response")
    if not set(columns) <= set(source.columns):
        remedy = f"name them {_listed(columns)}"
        raise InputError(field, path, f"{source.name} has the columns {_listed(source.columns)}: {remedy}")
    by_goal: dict[str, str] = {}
    for place, values in source.rows(columns):
        goal, refusal = (str(values[column] or "").strip() for column in columns)
        if not goal or not refusal:
            raise InputError(field, path, f"{place} of {source.name} has an empty cell: fill it in or remove the row")
        if by_goal.setdefault(goal, refusal) != refusal:
            raise InputError(field, path, f"{place} of {source.name} gives a second refusal for a behavior: keep one")
    for one in behaviors:
        if one.goal not in by_goal:
            remedy = "add it, or leave refusals_path out to use behaviors.default_refusal"
            raise InputError(field, path, f"no refusal for behavior {one.behavior_id!r}: {remedy}")
    return [replace(one, refusal=by_goal[one.goal]) for one in behaviors]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
