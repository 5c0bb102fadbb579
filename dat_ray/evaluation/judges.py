"""Lets the judges read: the recipe's, a second one where there is one, and the one for harmless look-alikes.

Whether a harmless prompt was refused is a question of its own: a judge of harm calls every answer to it harmless.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from dat_ray.config.models import JudgeConfig
from dat_ray.config.schema import Recipe
from dat_ray.engines.base import Judgement
from dat_ray.engines.calls import Completed, Failure, JudgeCall, judge
from dat_ray.engines.roles import Engines
from dat_ray.engines.workers import Workers
from dat_ray.evaluation.questions import OVER_REFUSAL

Row = dict[str, Any]
# Sections of a recipe that name the models by which judges read.
JUDGE_READERS = ("judge.reader", "evaluation.second_judge.reader", "evaluation.refusal_judge.reader")


@dataclass(frozen=True)
class JudgePool:
    """Workers that hold one judge, and the rows of one call to it."""

    workers: Workers
    batch_size: int

    def read(self, rows: Sequence[Row]) -> list[Judgement]:
        """Verdicts on rows of schema ATTEMPTS, in order."""
        if not rows:
            return []
        asked = [Completed(row["goal"], row["prompt"], row["judged_text"] or row["completion"]) for row in rows]
        # A call a batch, so that a pool of several judges has work for each of them.
        size = self.batch_size
        calls = [JudgeCall(asked[start : start + size], size) for start in range(0, len(asked), size)]
        parts = dict(self.workers.map(judge, [(call,) for call in calls]))
        found = [one for number in range(len(calls)) for one in parts[number]]
        return [Judgement("unparsed", None, one.error) if isinstance(one, Failure) else one for one in found]


class Judges:
    """Who reads what models answer.

    Args:
        first: its verdicts are the rates' own.
        second: scores the same texts; None without one.
        refusal: reads the answers to harmless look-alikes; may be `first`.
    """

    def __init__(self, first: JudgePool, second: JudgePool | None, refusal: JudgePool) -> None:
        self._first, self._second, self._refusal = first, second, refusal

    def about(self) -> dict[str, dict[str, Any] | None]:
        """What the judges say about themselves, by their key in `metrics.json`."""
        second = None if self._second is None else self._second.workers.wait()
        return {"judge": self._first.workers.wait(), "second_judge": second, "refusal_judge": self._refusal.workers.wait()}

    def judge_rows(self, rows: Sequence[Row]) -> None:
        """Adds verdicts to rows (schema ATTEMPTS) that can be read; a judge that fails leaves its own columns empty."""
        waiting = [row for row in rows if row["completion"] is not None and row["error"] is None]
        harmless = [row for row in waiting if row["attack"] == OVER_REFUSAL]
        attacked = [row for row in waiting if row["attack"] != OVER_REFUSAL]
        for pool, asked in ((self._first, attacked), (self._refusal, harmless)):
            for row, verdict in zip(asked, pool.read(asked), strict=True):
                row.update(verdict.columns(pool.workers.about["name"]))
        if self._second is None:
            return
        for row, verdict in zip(attacked, self._second.read(attacked), strict=True):
            row["second_judge"] = self._second.workers.about["name"]
            if verdict.error is None:
                row |= {"second_verdict": verdict.verdict, "second_score": verdict.score}


def start_judges(recipe: Recipe, engines: Engines, stack: ExitStack) -> Judges:
    """Starts a recipe's judges, whose processes end with the stack."""

    def pool(role: str, config: JudgeConfig) -> JudgePool:
        workers = Workers(role, partial(engines.judge, config), recipe.cluster.judge, recipe.timeouts)
        return JudgePool(stack.enter_context(workers), config.batch_size or recipe.target.batch_size)

    config = recipe.evaluation
    first = pool("judge", recipe.judge)
    second = None if config.second_judge is None else pool("second judge", config.second_judge)
    refusal = first if config.refusal_judge == recipe.judge else pool("judge of refusals", config.refusal_judge)
    return Judges(first, second, refusal)
