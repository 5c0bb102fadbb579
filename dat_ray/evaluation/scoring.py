"""Lets the judges read: the recipe's, and a second one where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dat_ray.engines.base import Judgement
from dat_ray.engines.workers import Workers
from dat_ray.evaluation import answers
from dat_ray.evaluation.answers import Failure

Row = dict[str, Any]


class Judges:
    """One or two pools of judges.

    Args:
        first: its verdicts are the rates' own.
        second: scores the same texts; None without one.
        batch_size: rows of one call.
    """

    def __init__(self, first: Workers, second: Workers | None, batch_size: int) -> None:
        self._first, self._second, self._batch_size = first, second, batch_size

    def about(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """What the judges say about themselves."""
        return self._first.wait(), None if self._second is None else self._second.wait()

    def fill_in(self, rows: Sequence[Row]) -> None:
        """Adds verdicts to rows (schema ATTEMPTS) that can be read; a judge that fails leaves its own columns empty."""
        waiting = [row for row in rows if row["completion"] is not None and row["error"] is None]
        for row, verdict in zip(waiting, self._read(self._first, waiting), strict=True):
            problem = _problem(verdict)
            if problem is not None:
                row["error"] = f"judge: {problem}"
            else:
                row |= {"judge": self._first.about["name"], "verdict": verdict.verdict, "score": verdict.score}
        if self._second is None:
            return
        for row, verdict in zip(waiting, self._read(self._second, waiting), strict=True):
            row["second_judge"] = self._second.about["name"]
            if _problem(verdict) is None:
                row |= {"second_verdict": verdict.verdict, "second_score": verdict.score}

    def _read(self, judge: Workers, rows: Sequence[Row]) -> list[Any]:
        if not rows:
            return []
        triples = [(row["goal"], row["prompt"], row["judged_text"] or row["completion"]) for row in rows]
        [(_, verdicts)] = judge.map(answers.judge, [(triples, self._batch_size)])
        return verdicts


def _problem(verdict: Judgement | Failure) -> str | None:
    return verdict.error
