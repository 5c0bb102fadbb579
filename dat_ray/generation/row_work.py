"""Runs an engine over rows so that a bad row costs itself, and neither its batch nor the stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from dat_ray.data.row_types import Row
from dat_ray.engines.calls import try_call
from dat_ray.errors import error_line
from dat_ray.generation.ledger import TRIES_PER_ROW

# Takes rows, returns for each the columns to fill in, or `error` alone where that row has no answer.
FillRows = Callable[[Sequence[Row]], Sequence[Row]]


class Tries(Protocol):
    """The part of the ledger that is used here."""

    def open_tries(self, role: str, ids: list[str]) -> list[int]: ...
    def begin(self, role: str, ids: list[str]) -> None: ...
    def end(self, role: str, ids: list[str], errors: dict[str, str], again: bool = False) -> None: ...
    def death(self, role: str) -> str: ...


def fill_in(rows: Sequence[Row], work: FillRows, ledger: Tries, role: str) -> list[Row]:
    """Adds what `work` answers to each row, or the reason why there is no answer to its `error` column.

    The batch is tried whole. Where that raises, or where a process ended on it before, its rows are tried one by one.
    Rows that an earlier role gave up pass unchanged.

    Args:
        rows: CANDIDATES as dictionaries.
        work: the engine's part; one answer for each row, in order.
        ledger: learns of every start, end and failure.
        role: "sampler", "target" or "judge".

    Raises:
        EngineLost: the engine cannot go on in this process.
        DatError: too many rows have failed, or another process stopped the stage.
    """
    out = [dict(row) for row in rows]
    todo = [row for row in out if row["error"] is None]
    ids = [row["candidate_id"] for row in todo]
    if not todo:
        return out
    tries = ledger.open_tries(role, ids)
    if not any(tries):
        ledger.begin(role, ids)
        answers = try_call(work, todo)
        if not isinstance(answers, Exception):
            for row, answer in zip(todo, answers, strict=True):
                row.update(answer)
            ledger.end(role, ids, {row["candidate_id"]: row["error"] for row in todo if row["error"] is not None})
            return out
        if len(todo) == 1:
            todo[0]["error"] = _describe(role, answers)
            ledger.end(role, ids, {ids[0]: todo[0]["error"]})
            return out
        ledger.end(role, ids, {}, again=True)
    for row, identifier, unfinished in zip(todo, ids, tries, strict=True):
        if unfinished >= TRIES_PER_ROW:
            row["error"] = f"{role}: {unfinished} processes ended on this row ({ledger.death(role)})"
        else:
            ledger.begin(role, [identifier])
            answers = try_call(work, [row])
            if isinstance(answers, Exception):
                row["error"] = _describe(role, answers)
            else:
                row.update(answers[0])
        ledger.end(role, [identifier], {identifier: row["error"]} if row["error"] else {})
    return out


def _describe(role: str, error: Exception) -> str:
    return f"{role}: {error_line(error)}"
