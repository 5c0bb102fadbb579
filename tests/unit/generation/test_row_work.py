from __future__ import annotations

import pytest

from dat_ray.data.error_limit import ErrorLimit
from dat_ray.errors import DatError, EngineLost
from dat_ray.generation.ledger import TRIES_PER_ROW, Ledger
from dat_ray.generation.row_work import fill_in


def rows(*names: str, **errors: str) -> list[dict]:
    return [{"candidate_id": name, "error": errors.get(name)} for name in names]


def ledger(total: int = 10, rate: float = 1.0) -> Ledger:
    return Ledger(ErrorLimit(total, rate), {})


class Engine:
    """Answers with the row's name in capitals, raises on some rows, and notes what it was asked."""

    def __init__(self, bad: str = "", kind: type[Exception] = ValueError) -> None:
        self.bad, self.kind, self.asked = bad, kind, list[str]()

    def __call__(self, batch):
        names = "".join(row["candidate_id"] for row in batch)
        self.asked.append(names)
        if set(self.bad) & set(names):
            raise self.kind(f"no {names}")
        return [{"prompt": row["candidate_id"].upper()} for row in batch]


def test_a_good_batch_is_asked_once():
    engine = Engine()
    out = fill_in(rows("a", "b"), engine, ledger(), "sampler")
    assert out == [
        {"candidate_id": "a", "error": None, "prompt": "A"},
        {"candidate_id": "b", "error": None, "prompt": "B"},
    ]
    assert engine.asked == ["ab"]


def test_a_bad_row_costs_itself_only():
    engine, book = Engine(bad="b"), ledger()
    out = fill_in(rows("a", "b", "c"), engine, book, "sampler")
    assert [row.get("prompt") for row in out] == ["A", None, "C"]
    assert [row["error"] for row in out] == [None, "sampler: ValueError: no b", None]
    assert engine.asked == ["abc", "a", "b", "c"]
    assert book.failed() == 1
    assert book.open_tries("sampler", ["a", "b", "c"]) == [0, 0, 0]


def test_a_bad_row_alone_is_not_asked_twice():
    engine = Engine(bad="b")
    assert fill_in(rows("b"), engine, ledger(), "judge")[0]["error"] == "judge: ValueError: no b"
    assert engine.asked == ["b"]


def test_rows_that_failed_before_pass_unchanged():
    engine = Engine()
    out = fill_in(rows("a", "b", a="sampler: no"), engine, ledger(), "target")
    assert out[0] == {"candidate_id": "a", "error": "sampler: no"}
    assert engine.asked == ["b"]
    assert fill_in(rows("a", a="sampler: no"), engine, ledger(), "target") == [out[0]]
    assert engine.asked == ["b"]


def test_fewer_answers_than_rows_never_shift():
    out = fill_in(rows("a", "b"), lambda batch: [{"prompt": "A"}][: len(batch) - 1] or [], ledger(), "judge")
    assert [row["error"] for row in out] == ["judge: WrongCount: 0 answers to 1 rows"] * 2
    assert all("prompt" not in row for row in out)


def test_too_many_failures_stop_before_the_batch_is_handed_on():
    with pytest.raises(DatError, match="2 of 10 rows failed"):
        fill_in(rows("a", "b", "c"), Engine(bad="ab"), ledger(10, 0.1), "sampler")


def test_a_lost_engine_is_told_apart_by_its_name():
    class EngineDeadError(Exception):
        pass

    class Derived(EngineDeadError):
        pass

    with pytest.raises(EngineLost, match="no ab"):
        fill_in(rows("a", "b"), Engine(bad="a", kind=Derived), ledger(), "sampler")


def test_a_row_without_an_answer_has_failed_and_its_batch_is_not_asked_again():
    asked = []

    def judge(batch):
        asked.append([row["candidate_id"] for row in batch])
        return [{"error": "judge: away"} if row["candidate_id"] == "b" else {"score": 1.0} for row in batch]

    book = ledger(total=10, rate=0.1)
    out = fill_in(rows("a", "b", "c"), judge, book, "judge")
    assert [row["error"] for row in out] == [None, "judge: away", None]
    assert [row.get("score") for row in out] == [1.0, None, 1.0]
    assert asked == [["a", "b", "c"]]
    assert book.failed() == 1
    with pytest.raises(DatError, match=r"2 of 10 rows failed, more than .*max_error_rate = 0.1 .*the first: judge: away"):
        fill_in([{"candidate_id": "d", "error": None}], lambda batch: [{"error": "judge: away"}], book, "judge")


class ProcessEnd(BaseException):
    """Stands for a process that ends: nothing after it runs."""


def test_a_row_that_ends_every_process_is_given_up_and_its_neighbors_are_not():
    book = ledger()

    def deadly(batch):
        if any(row["candidate_id"] == "b" for row in batch):
            raise ProcessEnd
        return Engine()(batch)

    ends = 0
    while True:
        try:
            out = fill_in(rows("a", "b", "c"), deadly, book, "sampler")
            break
        except ProcessEnd:
            ends += 1
    assert ends == TRIES_PER_ROW
    assert [row.get("prompt") for row in out] == ["A", None, "C"]
    assert out[1]["error"].startswith(f"sampler: {TRIES_PER_ROW} processes ended on this row")
