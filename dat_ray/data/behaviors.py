"""Behaviors: harmful goals with affirmative targets and refusals, the held-out ones, and harmless requests.

What the columns of a table mean is said by `dat_ray.data.behavior_layouts`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyarrow as pa

from dat_ray.config.data import BehaviorsConfig, BehaviorSource
from dat_ray.data.behavior_layouts import COPYRIGHT, STANDARD, Layout, choose_layout, same_value
from dat_ray.data.ids import row_id
from dat_ray.data.schemas import BEHAVIORS, HARMLESS, HARMLESS_HELD_OUT, HELD_OUT, LOOK_ALIKES, TRAIN
from dat_ray.data.table_files import PlacedRow, listed
from dat_ray.data.table_sources import open_source, read_json
from dat_ray.data.text import near_duplicates
from dat_ray.errors import InputError
from dat_ray.json_text import JsonError, parse_json


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
        table: schema BEHAVIORS, one row a (behavior, target), splits train, heldout, over_refusal, harmless and harmless_heldout
            in that order, each in the order of its table.
        dropped: training behaviors too close to a held-out one, one entry each; they are not in ``table``.
        blank_targets: empty texts in the lists of targets, which were left out; HarmBench's adversarial-training
            targets hold eleven.
    """

    table: pa.Table
    dropped: list[NearDuplicate]
    blank_targets: int


@dataclass(frozen=True)
class _Behavior:
    """`request` is the goal without its context, by which files of targets and refusals know it."""

    behavior_id: str
    goal: str
    request: str
    category: str | None
    source: str
    targets: tuple[str, ...]
    blank_targets: int
    refusal: str


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
    look_alikes = [] if cfg.over_refusal is None else _Reader(cfg.over_refusal, "behaviors.over_refusal").goals()
    harmless, harmless_heldout = (
        [] if source is None else _Reader(source, f"behaviors.{field}").behaviors(cfg.default_refusal, constant=True)
        for field, source in (("harmless", cfg.harmless), ("harmless_heldout", cfg.harmless_heldout))
    )
    blank = sum(behavior.blank_targets for behavior in (*train, *heldout, *harmless, *harmless_heldout))
    closest = _too_close(train, heldout, cfg.near_duplicate)
    kept = [behavior for index, behavior in enumerate(train) if index not in closest]
    if not kept:
        problem = f"all {len(closest)} training behaviors are near-duplicates of held-out ones"
        raise InputError("behaviors.path", cfg.path, f"{problem}: choose another set, or raise behaviors.near_duplicate")
    closest_harmless = _too_close(harmless, [*look_alikes, *harmless_heldout], cfg.near_duplicate)
    harmless = [behavior for index, behavior in enumerate(harmless) if index not in closest_harmless]
    if cfg.harmless is not None and not harmless:
        problem = "all requests are near-duplicates of those that over-refusal is measured with"
        raise InputError("behaviors.harmless.path", cfg.harmless.path, f"{problem}: choose another set")
    known = {
        TRAIN: kept,
        HELD_OUT: heldout,
        LOOK_ALIKES: look_alikes,
        HARMLESS: harmless,
        HARMLESS_HELD_OUT: harmless_heldout,
    }
    splits = _with_distinct_ids(known, cfg)
    _check_ids_across(splits)
    dropped = [
        NearDuplicate(train[i].behavior_id, splits[HELD_OUT][j].behavior_id, similarity) for i, (similarity, j) in closest.items()
    ]
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


def _too_close(train: Sequence[_Behavior], heldout: Sequence[_Behavior], threshold: float) -> dict[int, tuple[float, int]]:
    """Numbers of the training behaviors to drop: how similar the closest held-out one is, and its number."""
    closest: dict[int, tuple[float, int]] = {}
    for i, j, similarity in near_duplicates([one.goal for one in train], [one.goal for one in heldout], threshold):
        if i not in closest or similarity > closest[i][0]:
            closest[i] = similarity, j
    return closest


def _with_distinct_ids(splits: dict[str, list[_Behavior]], cfg: BehaviorsConfig) -> dict[str, list[_Behavior]]:
    """Gives the split's name to ids that an earlier split has for another goal.

    Known layouts name their rows anew in every table: the harmful and the benign half of JailbreakBench share all ids.
    Ids of a column that the recipe names stay as they are.
    """
    sources = {TRAIN: cfg} | {split: getattr(cfg, split) for split in splits if split != TRAIN}
    goals: dict[str, str] = {}
    distinct: dict[str, list[_Behavior]] = {}
    for split, behaviors in splits.items():
        source = sources[split]
        may_rename = source is not None and source.columns.id is None
        distinct[split] = [
            replace(behavior, behavior_id=f"{split}-{behavior.behavior_id}")
            if may_rename and goals.get(behavior.behavior_id, behavior.goal) != behavior.goal
            else behavior
            for behavior in behaviors
        ]
        goals |= {behavior.behavior_id: behavior.goal for behavior in distinct[split]}
    return distinct


def _check_ids_across(splits: dict[str, list[_Behavior]]) -> None:
    """Later stages know a behavior by its id alone, so an id belongs to one split."""
    owner: dict[str, tuple[str, str]] = {}
    for split, behaviors in splits.items():
        for behavior in behaviors:
            other, goal = owner.setdefault(behavior.behavior_id, (split, behavior.goal))
            if other == split:
                continue
            problem = f"stands for a behavior of {other} and for one of {split}"
            if goal == behavior.goal:
                raise InputError("behaviors.path", behavior.behavior_id, f"{problem}, the same goal: remove it from one of them")
            remedy = "number them apart, or leave columns.id out so that ids are hashes of the goals"
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
            remedy = f"{self.source.name} has no targets: name a JSON file {{BehaviorID or goal: target}}, as HarmBench has one"
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

    def _layout(self) -> Layout:
        return choose_layout(self.cfg, self.source.columns, self.field)

    def _rows(self, layout: Layout) -> list[_Behavior]:
        """The first `limit` behaviors that the layout and `where` let through; all rows are checked."""
        roles = ("goal", "target", "refusal", "category", "id", "function", "context")
        named: dict[str, str] = {f"columns.{role}": getattr(layout, role) for role in roles if getattr(layout, role)}
        named |= {f"where.{column}": column for column in self.cfg.where}
        for where, column in named.items():
            if column not in self.source.columns:
                raise InputError(f"{self.field}.{where}", column, self._no_column(where, column))
        found: dict[str, _Behavior] = {}
        places: dict[str, str] = {}
        left_out: Counter[str] = Counter()
        for row in self.source.rows(list(dict.fromkeys(named.values()))):
            if not all(same_value(row.values[column], value) for column, value in self.cfg.where.items()):
                continue
            kind = (layout.function and row.values[layout.function]) or STANDARD
            if kind != STANDARD and layout.function not in self.cfg.where:
                left_out[kind] += 1
                continue
            behavior = self._behavior(row, layout, kind)
            identifier = behavior.behavior_id
            if identifier in found:
                raise self._twice(row, layout, behavior, found[identifier], places[identifier])
            found[identifier], places[identifier] = behavior, row.place
        if not found:
            raise InputError(f"{self.field}.path", self.cfg.path, self._no_row(layout, left_out))
        return list(found.values())[: self.cfg.limit]

    def _no_column(self, where: str, column: str) -> str:
        alike = next((name for name in self.source.columns if name.lower() == column.lower()), None)
        remedy = f"name it {alike!r}" if alike else "correct the name, or set the format"
        remedy += ", or name targets_path" if where == "columns.target" and not alike else ""
        return f"{self.source.name} has no such column, only {listed(self.source.columns)}: {remedy}"

    def _no_row(self, layout: Layout, left_out: Counter[str]) -> str:
        """Why no row is left: what `where` compares with, and what the layout leaves out."""
        problem = f"has no row with {dict(self.cfg.where) or f'{layout.function} {STANDARD!r}'}"
        if left_out:
            counts = ", ".join(f"{count} {kind}" for kind, count in left_out.items())
            return f"{problem} and of the kind {STANDARD}, but {counts}: ask for another kind by where.{layout.function}"
        for column in self.cfg.where:
            values = dict.fromkeys(
                str(row.values[column]) for row in self.source.rows([column]) if row.values[column] is not None
            )
            problem += f"; {column} has {listed(list(values))}"
        return f"{problem}: choose another table or value"

    def _twice(self, row: PlacedRow, layout: Layout, second: _Behavior, first: _Behavior, place: str) -> InputError:
        """Two rows with one id: the same goal again, or two goals under one id, and what to do about either."""
        same = second.goal == first.goal
        problem = f"{row.place} of {self.source.name} has the {'goal' if same else 'id'} of {place}, {second.behavior_id!r}"
        if same:
            remedy = "keep one row a behavior, with a list of targets"
        elif self.cfg.columns.id is not None:
            problem, remedy = f"{problem}, but another goal", "number them apart, or leave columns.id out: then goals are hashed"
        else:
            columns = {"goal": layout.goal} | ({"target": layout.target} if layout.target else {})
            problem = f"{problem}, but another goal"
            remedy = f"set format to table and columns to {columns}: then ids are hashes of the goals"
        return InputError(f"{self.field}.path", self.cfg.path, f"{problem}: {remedy}")

    def _behavior(self, row: PlacedRow, layout: Layout, kind: str) -> _Behavior:
        goal = request = self._cell(row, "goal", layout.goal)
        if kind == COPYRIGHT:
            problem = f"{row.place} is a copyright row, judged by comparison with a protected text that is not here"
            raise InputError(f"{self.field}.where", dict(self.cfg.where), f"{problem}: ask for another {layout.function}")
        context = row.values[layout.context] if layout.context else None
        if context is not None and str(context).strip():
            goal = f"{str(context).strip()}\n\n{request}"
        elif kind != STANDARD:
            raise self._bad(row, "context", layout.context, f"is {kind} and has no context: fill it in, or remove the row")
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
            request=request,
            category=None if category is None else str(category).strip() or None,
            source=self.source.name,
            targets=targets.texts,
            blank_targets=targets.blank,
            refusal=(refusal or "").strip(),
        )

    def _cell(self, row: PlacedRow, role: str, column: str, numbers: bool = False) -> str:
        value = row.values[column]
        if numbers and isinstance(value, int | float) and not isinstance(value, bool) and value == int(value):
            value = str(int(value))
        if value is not None and not isinstance(value, str):
            raise self._bad(row, role, column, f"is a {type(value).__name__}: write a text there")
        if value is None or not value.strip():
            raise self._bad(row, role, column, "is empty, or NaN: fill it in, or remove the row")
        return value.strip()

    def _bad(self, row: PlacedRow, role: str, column: str | None, problem: str) -> InputError:
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
            value = parse_json(value, finite=False)
        except JsonError:
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
        key = one.behavior_id if one.behavior_id in content else one.request
        if key not in content:
            remedy = "add it, or name the file that belongs to the behaviors"
            raise InputError(field, path, f"no target for behavior {one.behavior_id!r}: {remedy}")
        targets = parse_targets(content[key])
        if not targets.texts:
            raise InputError(field, path, f"entry {key!r} {_NO_TARGET}")
        found.append(replace(one, targets=targets.texts, blank_targets=targets.blank))
    return found


def _with_refusals(behaviors: Sequence[_Behavior], path: str, field: str) -> list[_Behavior]:
    """Refusals from a table with the columns Behavior (the goal) and Safe_Response."""
    source, columns = open_source(path, field), ("Behavior", "Safe_Response")
    if not set(columns) <= set(source.columns):
        remedy = f"name them {listed(columns)}"
        raise InputError(field, path, f"{source.name} has the columns {listed(source.columns)}: {remedy}")
    by_goal: dict[str, str] = {}
    for place, values, _ in source.rows(columns):
        goal, refusal = (str(values[column] or "").strip() for column in columns)
        if not goal or not refusal:
            raise InputError(field, path, f"{place} of {source.name} has an empty cell: fill it in or remove the row")
        if by_goal.setdefault(goal, refusal) != refusal:
            raise InputError(field, path, f"{place} of {source.name} gives a second refusal for a behavior: keep one")
    for one in behaviors:
        if one.request not in by_goal:
            remedy = "add it, or leave refusals_path out to use behaviors.default_refusal"
            raise InputError(field, path, f"no refusal for behavior {one.behavior_id!r}: {remedy}")
    return [replace(one, refusal=by_goal[one.request]) for one in behaviors]
