"""What a finished evaluation holds, in the order in which other tools want it: a block for each model and attack."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

from dat_ray.config.loading import validate_known_fields
from dat_ray.config.schema import Recipe
from dat_ray.data.links import refuse_links
from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import exists, join, open_filesystem, read_file, read_table
from dat_ray.data.storage import answers_of
from dat_ray.errors import InputError
from dat_ray.evaluation.on_goal import is_attack
from dat_ray.evaluation.questions import HARMLESS_PROMPTS
from dat_ray.evaluation.rescore import read_record
from dat_ray.evaluation.results import METRICS, Metrics, load_metrics

HARMFUL, NOT_HARMFUL = "harmful", "not_harmful"


@dataclass(frozen=True)
class EvaluatedBehavior:
    """A behavior that was attacked; the category is empty where none is known."""

    behavior_id: str
    goal: str
    category: str


@dataclass(frozen=True)
class Attacked:
    """One attack on one model.

    Attributes:
        model: its name in the evaluation.
        attack: its name.
        attempts: behavior id -> rows of schema ATTEMPTS in the order of their index; only behaviors that have some.
    """

    model: str
    attack: str
    attempts: dict[str, list[dict[str, Any]]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All attempts, behavior by behavior."""
        return [row for rows in self.attempts.values() for row in rows]


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation.

    Attributes:
        root: its folder.
        suite: its name.
        recipe: with which it was made.
        fingerprint: of that run.
        behaviors: attacked ones, in the order of the run.
        attacks: a block for each model and attack, in the order of metrics.json.
        ended: when its figures were written.
        metrics: its figures.
    """

    root: str
    suite: str
    recipe: Recipe
    fingerprint: str
    behaviors: list[EvaluatedBehavior]
    attacks: list[Attacked]
    ended: datetime.datetime
    metrics: Metrics


def read_evaluated(where: str, suite: str | None) -> Evaluated:
    """Reads a finished evaluation.

    Args:
        where: a run directory, or an evaluation's folder.
        suite: of the run directory; None for its own.

    Raises:
        InputError: there is none, or files that were not written by an evaluation.
        ShardError: its files are altered.
    """
    if suite is not None:
        if not exists(RunDir(where).record):
            raise InputError("--suite", suite, "belongs to a run directory: name that, or the evaluation's folder alone")
        where = RunDir(where.rstrip("/")).evaluation(suite)
    root, record = read_record(where, "RUN_DIR")
    refuse_links(root)
    recipe, _ = validate_known_fields(Recipe, record["recipe"])
    metrics = load_metrics(root)
    rows = read_table(root).to_pylist()
    behaviors = _behaviors(root, rows)
    blocks = [
        _attacked(model, attack, behaviors, rows, metrics.goal_floor(model, attack))
        for model, found in metrics.models.items()
        for attack in found.attacks
    ]
    fs, inner = open_filesystem(join(root, METRICS))
    with answers_of(root):
        mtime = fs.get_file_info(inner).mtime
    ended = mtime if mtime is not None else datetime.datetime.now(datetime.UTC)
    return Evaluated(root, record["suite"], recipe, str(record.get("fingerprint") or ""), behaviors, blocks, ended, metrics)


def _attacked(
    model: str, attack: str, behaviors: list[EvaluatedBehavior], rows: list[dict[str, Any]], floor: float | None
) -> Attacked:
    """The attempts that the figures count: a drawn prompt off the goal is none."""
    of_block = [row for row in rows if row["model"] == model and row["attack"] == attack and is_attack(row, (attack,), floor)]
    by_behavior = {
        one.behavior_id: sorted(
            (row for row in of_block if row["behavior_id"] == one.behavior_id), key=lambda row: row["attempt_index"]
        )
        for one in behaviors
    }
    return Attacked(model, attack, {key: found for key, found in by_behavior.items() if found})


def _behaviors(root: str, rows: list[dict[str, Any]]) -> list[EvaluatedBehavior]:
    """The run's held-out behaviors with their categories; of a folder that stands alone what its attempts say."""
    run = RunDir(root.rsplit("/", 2)[0])
    if exists(run.record) and exists(run.behaviors):
        held_out = [row for row in read_file(run.behaviors).to_pylist() if row["split"] == "heldout"]
        found = {
            row["behavior_id"]: EvaluatedBehavior(row["behavior_id"], row["goal"], row["category"] or "") for row in held_out
        }
    else:
        attacked = [row for row in rows if row["attack"] not in HARMLESS_PROMPTS]
        found = {row["behavior_id"]: EvaluatedBehavior(row["behavior_id"], row["goal"], "") for row in attacked}
    return list(found.values())
