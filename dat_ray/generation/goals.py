"""Training sets that need no sampler: the behaviors' own goals (CAT), and goals mixed with rewrites (MixAT)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dat_ray.data.ids import row_id
from dat_ray.data.schemas import HARMLESS, TRAIN, TRAINING_SET
from dat_ray.data.table_files import listed
from dat_ray.data.table_sources import open_source
from dat_ray.data.text import normalize
from dat_ray.errors import InputError

_FIELD = "selection.rewrites"


@dataclass(frozen=True)
class Goals:
    """Requests that every in-painted prompt is compared with.

    Attributes:
        training: goals of the training behaviors.
        harmless: harmless requests.
    """

    training: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()


NO_GOALS = Goals()


@dataclass(frozen=True)
class Rewrites:
    """Rewritten prompts of a table.

    Attributes:
        table: TRAINING_SET; `rank` numbers the rewrites of a goal.
        rows: of the table that was read.
        passed_over: of these, those whose goal is not trained on.
    """

    table: pa.Table
    rows: int
    passed_over: int


def goals_to_compare(requests: pa.Table) -> Goals:
    """Those of a round's rows (schema CANDIDATES); each once, in their order."""
    goals = requests["goal"].to_pylist()
    # A round of an older version knows no splits.
    splits = requests["split"].to_pylist() if "split" in requests.column_names else [TRAIN] * len(goals)
    harmless = [goal for split, goal in zip(splits, goals, strict=True) if split == HARMLESS]
    training = [goal for split, goal in zip(splits, goals, strict=True) if split != HARMLESS]
    return Goals(tuple(dict.fromkeys(training)), tuple(dict.fromkeys(harmless)))


def goal_rows(behaviors: pa.Table) -> pa.Table:
    """Every training behavior's goal with each of its targets: CAT's 100 x 12 rows.

    Args:
        behaviors: BEHAVIORS.

    Returns:
        TRAINING_SET, in the order of `behaviors`; `rank` is the target's index.
    """
    return _rows((row, row["goal"], row["target_index"]) for row in _training(behaviors))


def rewrite_rows(behaviors: pa.Table, path: str) -> Rewrites:
    """Rewritten prompts from a table, each with every target of its goal.

    Rows of goals that are not trained on are passed over: `behaviors.limit` may have cut a goal, or a held-out goal may be
    its near-duplicate, which the behaviors alone do not tell from a misspelled one.

    Args:
        behaviors: BEHAVIORS.
        path: table with the columns `goal`, equal to a training goal up to case, punctuation and spacing, and `prompt`.

    Raises:
        InputError: the table lacks a column or a text, or has no rewrite of a training goal.
    """
    by_goal: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in _training(behaviors):
        by_goal[normalize(row["goal"])].append(row)
    source = open_source(path, _FIELD)
    for column in ("goal", "prompt"):
        if column not in source.columns:
            raise InputError(_FIELD, path, f"has no column {column!r}, only {listed(source.columns)}: rename one")
    seen: defaultdict[str, int] = defaultdict(int)
    found: list[tuple[dict[str, Any], str, int]] = []
    count = passed_over = 0
    for place, values, _ in source.rows(["goal", "prompt"]):
        if not all(isinstance(values[name], str) and values[name].strip() for name in ("goal", "prompt")):
            raise InputError(_FIELD, path, f"{place} of {source.name} lacks a text: write a goal and a prompt, or remove the row")
        goal, count = normalize(values["goal"]), count + 1
        if goal not in by_goal:
            passed_over += 1
            continue
        found += [(row, values["prompt"].strip(), seen[goal]) for row in by_goal[goal]]
        seen[goal] += 1
    if not found:
        problem = f"none of the {count} rows of {source.name} rewrites a goal that is trained on"
        raise InputError(
            _FIELD, path, f"{problem}: write the goals of behaviors.path in the column 'goal', or name another table"
        )
    return Rewrites(_rows(found), count, passed_over)


def _training(behaviors: pa.Table) -> list[dict[str, Any]]:
    return [row for row in behaviors.to_pylist() if row["split"] == "train"]


def _rows(found: Any) -> pa.Table:
    rows = [
        {
            "candidate_id": row_id("goal", row["behavior_id"], row["target_index"], prompt, rank),
            "behavior_id": row["behavior_id"],
            "prompt": prompt,
            "target": row["target"],
            "refusal": row["refusal"],
            "score": None,
            "target_logprob": None,
            "rank": rank,
        }
        for row, prompt, rank in found
    ]
    return pa.Table.from_pylist(rows, schema=TRAINING_SET)
