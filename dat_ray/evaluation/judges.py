"""Lets the judges read: the recipe's, a second one where there is one, and the one for harmless prompts.

Whether a harmless prompt was refused is a question of its own: a judge of harm calls every answer to it harmless.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from dat_ray.config.cluster import Pool
from dat_ray.config.judge_names import library_judge
from dat_ray.config.models import JudgeConfig
from dat_ray.config.schema import Recipe
from dat_ray.data.row_types import Row
from dat_ray.engines.base import JUDGE_NOT_ASKED, Judgment
from dat_ray.engines.calls import Completed, Failure, JudgeCall, judge
from dat_ray.engines.pinning import JUDGES
from dat_ray.engines.roles import Engines
from dat_ray.engines.workers import Workers
from dat_ray.evaluation.outcomes import read_by_judges
from dat_ray.evaluation.questions import HARMLESS_PROMPTS
from dat_ray.evaluation.store import Chunk, ShardStore
from dat_ray.progress import stage_line

# Sections of a recipe that name the models by which judges read.
JUDGE_READERS = tuple(f"{judge}.reader" for judge in JUDGES)


@dataclass(frozen=True)
class JudgePool:
    """Workers that hold one judge, and the rows of one call to it."""

    workers: Workers
    batch_size: int

    def read(self, rows: Sequence[Row]) -> list[Judgment]:
        """Verdicts on rows of schema ATTEMPTS, in order."""
        if not rows:
            return []
        asked = [Completed(row["goal"], row["prompt"], read_by_judges(row)) for row in rows]
        # A call a batch, so that a pool of several judges has work for each of them.
        size = self.batch_size
        calls = [JudgeCall(asked[start : start + size], size) for start in range(0, len(asked), size)]
        parts = dict(self.workers.map(judge, [(call,) for call in calls]))
        found = [one for number in range(len(calls)) for one in parts[number]]
        return [Judgment("unparsed", None, one.error) if isinstance(one, Failure) else one for one in found]


class Judges:
    """Who reads what models answer.

    Args:
        first: its verdicts are the rates' own.
        second: scores the same texts; None without one.
        refusal: reads the answers to harmless prompts; may be `first`.
    """

    def __init__(self, first: JudgePool, second: JudgePool | None, refusal: JudgePool) -> None:
        self._first, self._second, self._refusal = first, second, refusal

    def about(self) -> dict[str, dict[str, Any] | None]:
        """What the judges say about themselves, by their key in `metrics.json`."""
        second = None if self._second is None else self._second.workers.wait()
        return {"judge": self._first.workers.wait(), "second_judge": second, "refusal_judge": self._refusal.workers.wait()}

    def judge_rows(self, rows: Sequence[Row]) -> None:
        """Adds the verdicts that rows (schema ATTEMPTS) lack and can have; a judge that fails leaves its own columns empty."""
        for row in rows:
            if _not_asked(row["error"]):
                row["error"] = None
        waiting = [row for row in rows if row["completion"] is not None and row["error"] is None]
        harmless = [row for row in waiting if row["attack"] in HARMLESS_PROMPTS]
        attacked = [row for row in waiting if row["attack"] not in HARMLESS_PROMPTS]
        for pool, readable in ((self._first, attacked), (self._refusal, harmless)):
            asked = [row for row in readable if row.get("verdict") is None]
            for row, verdict in zip(asked, pool.read(asked), strict=True):
                row.update(verdict.columns(pool.workers.about["name"]))
        if self._second is None:
            return
        asked = [row for row in attacked if row.get("second_verdict") is None]
        for row, verdict in zip(asked, self._second.read(asked), strict=True):
            row["second_judge"] = self._second.workers.about["name"]
            if verdict.error is None:
                row |= {"second_verdict": verdict.verdict, "second_score": verdict.score}

    def ask_again(self, store: ShardStore, chunks: Sequence[Chunk[Any]]) -> None:
        """Lets judges read stored rows about which they could not be asked: what was out of reach may be there now."""
        for chunk in chunks:
            rows = store.rows_of(chunk)
            unread = [row for row in rows if _lacks_verdict(row)]
            if unread:
                stage_line(f"{chunk.stem}: no judge could be asked about {len(unread)} rows: it is asked again")
                self.judge_rows(unread)
                store.put(chunk, rows)


def _not_asked(error: str | None) -> bool:
    return error is not None and error.startswith(JUDGE_NOT_ASKED)


def _lacks_verdict(row: Row) -> bool:
    """Whether a judge should have read a stored row and could not."""
    return _not_asked(row["error"]) or (row.get("second_judge") is not None and row["second_verdict"] is None)


def judge_pools(recipe: Recipe) -> dict[str, Pool]:
    """The pools of a recipe's judges by role: they are up together, for a whole evaluation. Rules take no GPU."""
    config = recipe.evaluation
    judges = {"judge": recipe.judge, "second judge": config.second_judge}
    judges["judge of refusals"] = None if config.refusal_judge == recipe.judge else config.refusal_judge
    pool = recipe.cluster.judge
    by_rules = pool.model_copy(update={"num_gpus": 0.0})
    return {role: pool if _has_model(judge) else by_rules for role, judge in judges.items() if judge is not None}


def _has_model(config: JudgeConfig) -> bool:
    return config.reader is not None or bool(library_judge(config.name))


def start_judges(recipe: Recipe, engines: Engines, stack: ExitStack) -> Judges:
    """Starts a recipe's judges, whose processes end with the stack."""

    pools = judge_pools(recipe)

    def pool(role: str, config: JudgeConfig) -> JudgePool:
        workers = Workers(role, partial(engines.judge, config), pools[role], recipe.timeouts)
        return JudgePool(stack.enter_context(workers), config.batch_size or recipe.target.batch_size)

    config = recipe.evaluation
    first = pool("judge", recipe.judge)
    second = None if config.second_judge is None else pool("second judge", config.second_judge)
    refusal = pool("judge of refusals", config.refusal_judge) if "judge of refusals" in pools else first
    return Judges(first, second, refusal)
