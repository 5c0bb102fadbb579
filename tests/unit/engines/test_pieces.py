"""A pool's work in pieces: which rows are asked again after processes have ended, and how the answers come together."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import pytest

from dat_ray.engines import calls
from dat_ray.engines.base import InfillRequest
from dat_ray.engines.calls import Answer, Completed, CompletionCall, Failure, InfillCall, JudgeCall, LikelihoodCall
from dat_ray.engines.pieces import TRIES_ALONE, TRIES_PER_CHUNK, TRIES_WHOLE, NoResult, Pieces, by_rows


@dataclass(frozen=True)
class Shout:
    words: Sequence[str]
    mark: str
    numbers: Sequence[int] | None


@by_rows("words", "numbers", failed=lambda reason: f"failed: {reason}")
def shout(engine: object, asked: Shout) -> list[str]:
    numbers = asked.numbers or [0] * len(asked.words)
    return [f"{word}{asked.mark}{number}" for word, number in zip(asked.words, numbers, strict=True)]


def run(work: Any, payloads: Sequence[tuple], deadly: set[str]) -> tuple[dict[int, Any], int]:
    """Does all pieces one after another; a piece that holds a deadly word ends its process."""
    pieces, found, ends = Pieces(work, payloads), dict[int, Any](), 0
    while pieces.waiting:
        piece = pieces.waiting.popleft()
        if deadly & set(piece.payload[0].words):
            ends += 1
            found.update(pieces.process_ended(piece, "killed"))
        else:
            found.update(pieces.finished(piece, work(None, *piece.payload)))
    return found, ends


WORDS = [f"w{number}" for number in range(11)]


@pytest.mark.parametrize("bad", [0, 4, 10])
def test_one_row_that_ends_processes_fails_alone(bad: int) -> None:
    payloads = [(Shout(WORDS, "!", list(range(11))),), (Shout(["x", "y"], "?", None),)]
    found, ends = run(shout, payloads, {WORDS[bad]})
    assert found[1] == ["x?0", "y?0"]
    expected = [f"{word}!{number}" for number, word in enumerate(WORDS)]
    assert found[0][:bad] + found[0][bad + 1 :] == expected[:bad] + expected[bad + 1 :]
    assert found[0][bad] == f"failed: {ends} processes ended on this row (killed)"
    # The whole chunk twice, then a half each time, and the row alone.
    assert ends <= TRIES_WHOLE + 3 + TRIES_ALONE


def test_several_rows_and_a_chunk_of_nothing_else() -> None:
    found, _ = run(shout, [(Shout(WORDS, "!", list(range(11))),), (Shout(["w2"], ".", [7]),)], {"w2", "w3", "w9"})
    assert [number for number, text in enumerate(found[0]) if text.startswith("failed")] == [2, 3, 9]
    assert found[1][0].startswith("failed: 2 processes")


def test_a_machine_that_is_taken_away_condemns_no_row() -> None:
    pieces = Pieces(shout, [(Shout(["a"], "!", [1]),)])
    piece = pieces.waiting.popleft()
    assert list(pieces.process_ended(piece, "node lost")) == []
    again = pieces.waiting.popleft()
    assert list(pieces.finished(again, shout(None, *again.payload))) == [(0, ["a!1"])]


def test_work_that_is_not_marked_is_given_up_whole() -> None:
    pieces = Pieces(lambda engine, value: value, [(3,)])
    for _ in range(TRIES_PER_CHUNK - 1):
        assert list(pieces.process_ended(pieces.waiting.popleft(), "killed")) == []
    with pytest.raises(NoResult, match=r"3 times over the same rows.*killed"):
        list(pieces.process_ended(pieces.waiting.popleft(), "killed"))


READ = [Completed("g", "p", "c"), Completed("h", "q", "d"), Completed("i", "r", "e")]
INFILLS = [InfillRequest(f"r{number}", "target", 4, number) for number in range(3)]


@pytest.mark.parametrize(
    ("work", "call", "rows"),
    [
        (calls.infill, InfillCall(INFILLS, 4), ["requests"]),
        (calls.logprob, LikelihoodCall([("p", "r"), ("q", "s")], 4), ["pairs"]),
        (calls.judge, JudgeCall(READ, 4), ["rows"]),
        (
            calls.complete,
            CompletionCall(["p", "q"], 9, 4, 1.0, [1, 2], ["a", "b"], [("hello", "hi"), ()], "attacker"),
            ["prompts", "seeds", "prefills", "histories"],
        ),
        (calls.complete, CompletionCall(["p", "q"], 9, 4, 1.0, [1, 2]), ["prompts", "seeds"]),
    ],
)
def test_what_the_evaluation_asks_is_taken_apart_with_all_that_belongs_to_a_row(work: Any, call: Any, rows: list[str]) -> None:
    pieces = Pieces(work, [(call,)])
    for _ in range(TRIES_WHOLE):
        list(pieces.process_ended(pieces.waiting.popleft(), "killed"))
    [first], [second] = (piece.payload for piece in pieces.waiting)
    for name in (field.name for field in fields(call)):
        parts = getattr(first, name), getattr(second, name)
        if name in rows:
            assert [*parts[0], *parts[1]] == list(getattr(call, name)), name
        else:
            assert parts == (getattr(call, name),) * 2, name
    failed = work.by_rows.failed("gone")
    assert failed == (Answer(None, 0.0, "gone") if work is calls.complete else Failure("gone"))


def test_every_call_of_an_engine_names_all_its_fields_that_have_an_entry_a_row() -> None:
    """So that a call, or a field, that is added is taken apart too."""
    found = {}
    for name, work in vars(calls).items():
        hints = get_type_hints(work) if inspect.isfunction(work) and work.__module__ == calls.__name__ else {}
        if "engine" in hints:
            found[name] = {field.name for field in fields(hints["asked"]) if str(field.type).startswith("Sequence[")}
            assert found[name] == set(work.by_rows.lists), name
    assert set(found) >= {"infill", "complete", "logprob", "judge"}
