"""Lets the judges read: the recipe's, a second one where there is one, and the one for harmless look-alikes.

Whether a harmless prompt was refused is a question of its own: a judge of harm calls every answer to it harmless.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from dat_ray.config.schema import Recipe
from dat_ray.engines.base import Judgement
from dat_ray.engines.workers import Workers
from dat_ray.evaluation import answers
from dat_ray.evaluation.answers import Failure
from dat_ray.evaluation.attacks import OVER_REFUSAL
from dat_ray.generation.actors import Engines

Row = dict[str, Any]
# Sections of a recipe that name the models by which judges read.
JUDGE_READERS = ("judge.reader", "evaluation.second_judge.reader", "evaluation.refusal_judge.reader")


class Judges:
    """Pools of judges.

    Args:
        first: its verdicts are the rates' own.
        second: scores the same texts; None without one.
        refusal: reads the answers to harmless look-alikes; may be `first`.
        batch_size: rows of one call.
    """

    def __init__(self, first: Workers, second: Workers | None, refusal: Workers, batch_size: int) -> None:
        self._first, self._second, self._refusal, self._batch_size = first, second, refusal, batch_size

    def about(self) -> dict[str, dict[str, Any] | None]:
        """What the judges say about themselves, by their key in `metrics.json`."""
        second = None if self._second is None else self._second.wait()
        return {"judge": self._first.wait(), "second_judge": second, "refusal_judge": self._refusal.wait()}

    def fill_in(self, rows: Sequence[Row]) -> None:
        """Adds verdicts to rows (schema ATTEMPTS) that can be read; a judge that fails leaves its own columns empty."""
        waiting = [row for row in rows if row["completion"] is not None and row["error"] is None]
        harmless = [row for row in waiting if row["attack"] == OVER_REFUSAL]
        attacked = [row for row in waiting if row["attack"] != OVER_REFUSAL]
        for judge, asked in ((self._first, attacked), (self._refusal, harmless)):
            for row, verdict in zip(asked, self._read(judge, asked), strict=True):
                row.update(verdict.columns(judge.about["name"]))
        if self._second is None:
            return
        for row, verdict in zip(attacked, self._read(self._second, attacked), strict=True):
            row["second_judge"] = self._second.about["name"]
            if verdict.error is None:
                row |= {"second_verdict": verdict.verdict, "second_score": verdict.score}

    def _read(self, judge: Workers, rows: Sequence[Row]) -> list[Judgement]:
        if not rows:
            return []
        triples = [(row["goal"], row["prompt"], row["judged_text"] or row["completion"]) for row in rows]
        [(_, found)] = judge.map(answers.judge, [(triples, self._batch_size)])
        verdicts: list[Judgement] = [Judgement("unparsed", None, one.error) if isinstance(one, Failure) else one for one in found]
        return verdicts


def start_judges(recipe: Recipe, engines: Engines, stack: ExitStack) -> Judges:
    """Starts a recipe's judges, whose processes end with the stack."""

    def pool(name: str, config: Any) -> Workers:
        build = partial(engines.judge, config)
        return stack.enter_context(Workers(name, build, recipe.cluster.judge, recipe.timeouts))

    config = recipe.evaluation
    first = pool("judge", recipe.judge)
    second = None if config.second_judge is None else pool("second judge", config.second_judge)
    refusal = first if config.refusal_judge == recipe.judge else pool("judge of refusals", config.refusal_judge)
    return Judges(first, second, refusal, recipe.target.batch_size)
