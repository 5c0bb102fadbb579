"""Files of ready prompts: what an attack found elsewhere, matched with the behaviors that are evaluated here.

How a file's parts are named is said by `dat_ray.data.prompt_layouts`. No text of a prompt is printed: rows are told by their
places.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dat_ray.config.evaluation import PromptFile
from dat_ray.data.behavior_layouts import same_value
from dat_ray.data.ids import row_id
from dat_ray.data.prompt_layouts import PromptLayout, artifact_rows, choose_prompt_layout
from dat_ray.data.table_files import Origin, PlacedRow, TableSource, from_rows, listed, table_kind
from dat_ray.data.table_sources import BUILTIN, HUB, open_source, read_json
from dat_ray.data.text import jaccard, normalize, tokens
from dat_ray.errors import InputError

# Share of words in common from which two goals under one id are one that was reworded: data sets mend goals while artifacts
# keep the old ones. Of JailbreakBench's artifacts those that differ from its table share 0.6 and more.
REWORDED = 0.5


@dataclass(frozen=True)
class PromptRow:
    """A ready prompt and where it stands.

    Attributes:
        prompt: as it is in the file; outer spaces may be part of an attack.
        goal: the request that it serves, where the file has it.
        behavior_id: the behavior's id, where the file has it; test cases may have the goal in its place.
        variant: what tells prompts of one behavior apart, such as a language.
        completion: a model's answer to it.
        file: name of the file.
        place: row and line in it.
    """

    prompt: str
    goal: str | None
    behavior_id: str | None
    variant: str | None
    completion: str | None
    file: str
    place: str


@dataclass(frozen=True)
class PromptSet:
    """What a file holds.

    Attributes:
        rows: in the order of the file.
        without_prompt: rows that have none; artifacts keep them for behaviors that were not broken.
        digest: 16 hex digits of all rows, which changes with the file's content.
    """

    rows: list[PromptRow]
    without_prompt: int
    digest: str


@dataclass(frozen=True)
class MatchedPrompts:
    """The rows of a file by behavior, and what became of the others.

    Attributes:
        by_behavior: behavior id -> rows in the order of the file; only behaviors that have some.
        reworded: rows of a behavior by its id, whose goal is worded otherwise.
        unmatched: rows of no behavior that is evaluated.
        contradicting: rows whose id is that of a behavior, but whose goal is another one.
        repeated: rows that say what an earlier one did.
        without_prompt: see `PromptSet`.
        without_rows: ids of behaviors for which the file has no prompt.
        first_unmatched: place of the first row that was not matched.
    """

    by_behavior: dict[str, list[PromptRow]]
    reworded: int = 0
    unmatched: int = 0
    contradicting: int = 0
    repeated: int = 0
    without_prompt: int = 0
    without_rows: list[str] = field(default_factory=list)
    first_unmatched: str | None = None

    @property
    def rows(self) -> int:
        """How many were matched."""
        return sum(map(len, self.by_behavior.values()))

    def counts(self) -> dict[str, int]:
        """For `metrics.json`."""
        rows = [row for rows in self.by_behavior.values() for row in rows]
        return {
            "prompts": len(rows),
            "completions": sum(row.completion is not None for row in rows),
            "behaviors": len(self.by_behavior),
            "behaviors_without": len(self.without_rows),
            "reworded": self.reworded,
            "unmatched": self.unmatched,
            "contradicting": self.contradicting,
            "repeated": self.repeated,
            "without_prompt": self.without_prompt,
        }

    def __str__(self) -> str:
        total = len(self.by_behavior) + len(self.without_rows)
        parts = [f"{self.rows} prompts for {len(self.by_behavior)} of {total} behaviors"]
        others = {
            "by the id, with the goal worded otherwise": self.reworded,
            f"of no behavior evaluated here, so left out (first: {self.first_unmatched})": self.unmatched,
            "of a behavior's id and another goal, so left out": self.contradicting,
            "repeated": self.repeated,
            "without a prompt": self.without_prompt,
        }
        parts += [f"{what}: {count}" for what, count in others.items() if count]
        return "; ".join(parts)


def read_prompts(cfg: PromptFile, where: str) -> PromptSet:
    """Reads a file of prompts.

    Args:
        cfg: which one, and how its columns are called.
        where: dotted name of its section, for messages.

    Raises:
        InputError: it cannot be read, no column holds prompts or says whose they are, a cell is no text, or no row is left.
    """
    source = _open(cfg.path, f"{where}.path")
    layout = choose_prompt_layout(cfg.columns, source.columns, source.name, where)
    for column in cfg.where:
        if column not in source.columns:
            problem = f"{source.name} has no such column, only {listed(source.columns)}"
            raise InputError(f"{where}.where.{column}", column, f"{problem}: correct the name")
    rows: list[PromptRow] = []
    without = 0
    for row in source.rows(list(dict.fromkeys([*layout.columns, *cfg.where]))):
        if not all(same_value(row.values[column], value) for column, value in cfg.where.items()):
            continue
        for found in _rows(row, layout, source.name, where):
            if cfg.variants and found.variant not in cfg.variants:
                continue
            if found.prompt.strip():
                rows.append(found)
            else:
                without += 1
    if not rows:
        asked = "".join(f", {name} {value}" for name, value in (("where", cfg.where), ("variants", list(cfg.variants))) if value)
        raise InputError(f"{where}.path", cfg.path, f"holds no prompt{asked}: choose another file or value")
    content = json.dumps([(row.prompt, row.goal, row.behavior_id, row.variant, row.completion) for row in rows])
    return PromptSet(rows, without, hashlib.sha256(content.encode()).hexdigest()[:16])


def match_prompts(prompts: PromptSet, goals: Mapping[str, str]) -> MatchedPrompts:
    """Finds each row's behavior.

    A row belongs to the behavior whose goal is its own, both normalized (case, punctuation and spacing do not count);
    among several such to the one with its id. A row without a goal belongs to the behavior with its id, or whose goal stands
    in the id's place. Where only the id agrees, the goal has to share at least `REWORDED` of the words, or be the end of the
    behavior's, as it is where a context comes first; another goal under the same id is another data set's.

    Args:
        prompts: of `read_prompts`.
        goals: behavior id -> goal, of the behaviors that are evaluated.
    """
    by_goal: dict[str, list[str]] = defaultdict(list)
    for identifier, goal in goals.items():
        by_goal[normalize(goal)].append(identifier)
    found: dict[str, list[PromptRow]] = {}
    seen: set[tuple[str, str | None, str, str | None]] = set()
    reworded = unmatched = contradicting = repeated = 0
    first: str | None = None
    for row in prompts.rows:
        behavior = _behavior_of(row, goals, by_goal)
        if behavior is None:
            if row.behavior_id in goals:
                contradicting += 1
            else:
                unmatched += 1
                first = first or row.place
            continue
        key = (behavior, row.variant, row.prompt, row.completion)
        if key in seen:
            repeated += 1
            continue
        seen.add(key)
        reworded += row.goal is not None and normalize(row.goal) != normalize(goals[behavior])
        found.setdefault(behavior, []).append(row)
    without = [identifier for identifier in goals if identifier not in found]
    ordered = {identifier: found[identifier] for identifier in goals if identifier in found}
    return MatchedPrompts(ordered, reworded, unmatched, contradicting, repeated, prompts.without_prompt, without, first)


def draw(rows: Sequence[PromptRow], samples: int | None, seed: int) -> list[PromptRow]:
    """At most `samples` rows of each variant, in their order; which ones depends on their texts and the seed alone."""
    if samples is None:
        return list(rows)
    ranked: dict[str | None, list[int]] = defaultdict(list)
    marks = [row_id("drawn prompt", seed, row.variant, row.prompt, row.completion) for row in rows]
    for number in sorted(range(len(rows)), key=marks.__getitem__):
        ranked[rows[number].variant].append(number)
    kept = {number for numbers in ranked.values() for number in numbers[:samples]}
    return [row for number, row in enumerate(rows) if number in kept]


def _behavior_of(row: PromptRow, goals: Mapping[str, str], by_goal: Mapping[str, list[str]]) -> str | None:
    stands_for_goal = row.goal if row.goal is not None else row.behavior_id
    wanted = normalize(stands_for_goal or "")
    same = by_goal.get(wanted, []) if wanted else []
    if row.behavior_id in same:
        return row.behavior_id
    if row.goal is None and row.behavior_id in goals:
        return row.behavior_id
    if same:
        return same[0]
    if row.goal is not None and row.behavior_id is not None and row.behavior_id in goals and wanted:
        goal = goals[row.behavior_id]
        if f" {normalize(goal)}".endswith(f" {wanted}") or jaccard(tokens(row.goal), tokens(goal)) >= REWORDED:
            return row.behavior_id
    return None


def _open(path: str, where: str) -> TableSource:
    """The file as a table; artifacts and test cases in JSON are laid out as rows."""
    if table_kind(path) == ".json" and not path.startswith((BUILTIN, HUB)):
        origin = Origin(where, path)
        try:
            content = read_json(path, where)
        except InputError:
            # Lines of JSON, a folder of that name, or damage that is named below.
            content = None
        if isinstance(content, dict) and content:
            return from_rows(path.rsplit("/", 1)[-1], artifact_rows(content, origin), origin)
    return open_source(path, where)


def _rows(row: PlacedRow, layout: PromptLayout, file: str, where: str) -> Iterable[PromptRow]:
    def text(role: str, column: str | None, numbers: bool = False) -> str | None:
        value: Any = None if column is None else row.values[column]
        if numbers and isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
            value = str(int(value))
        if value is not None and not isinstance(value, str):
            problem = f"{row.place} of {file} is a {type(value).__name__}: write a text there"
            raise InputError(f"{where}.columns.{role}", column, problem)
        return value

    def name(role: str, column: str | None) -> str | None:
        return (text(role, column, numbers=True) or "").strip() or None

    goal, identifier, variant = name("goal", layout.goal), name("id", layout.id), name("variant", layout.variant)
    completion = text("completion", layout.completion)
    if row.empty_is_absent and completion is not None and not completion.strip():
        completion = None
    if layout.prompt is not None:
        prompts = [(variant, text("prompt", layout.prompt))]
    else:
        prompts = [(language, text("prompt", language)) for language in layout.languages]
    for which, prompt in prompts:
        yield PromptRow(prompt or "", goal, identifier, which, completion, file, row.place)
