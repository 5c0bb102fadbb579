from __future__ import annotations

import pickle

import pytest

from dat_ray.data.error_limit import ErrorLimit
from dat_ray.errors import DatError
from dat_ray.generation.ledger import STARTS_PER_ACTOR, Ledger


def test_the_limit_counts_rows_that_may_fail():
    assert ErrorLimit(100, 0.05).rows == 5
    assert ErrorLimit(19, 0.05).rows == 0
    assert ErrorLimit(100, 0.07).rows == 7
    assert ErrorLimit(3, 1.0).rows == 3


def test_the_stage_stops_at_the_first_row_past_the_limit():
    ledger = Ledger(ErrorLimit(20, 0.1), {})
    ledger.end("sampler", ["a"], {"a": "sampler: no"})
    ledger.end("sampler", ["a"], {"a": "sampler: no"})  # a replayed row counts once
    ledger.end("judge", ["b"], {"b": "judge: no"})
    assert ledger.reason() is None
    with pytest.raises(DatError, match=r"3 of 20 rows failed, more than generation.max_error_rate = 0.1 .*first: sampler: no"):
        ledger.end("judge", ["c"], {"c": "judge: no"})
    with pytest.raises(DatError, match="3 of 20 rows failed"):
        ledger.open_tries("sampler", ["d"])
    assert ledger.failed() == 3


def test_failures_of_an_earlier_run_count():
    ledger = Ledger(ErrorLimit(20, 0.1), {"a": "x", "b": "y"})
    with pytest.raises(DatError, match="3 of 20"):
        ledger.end("sampler", ["c"], {"c": "z"})


def test_unfinished_tries_are_counted_by_role_and_cleared_by_an_end():
    ledger = Ledger(ErrorLimit(10, 1.0), {})
    ledger.begin("sampler", ["a", "b"])
    ledger.begin("sampler", ["a"])
    assert ledger.open_tries("sampler", ["a", "b", "c"]) == [2, 1, 0]
    assert ledger.open_tries("target", ["a"]) == [0]
    ledger.end("sampler", ["a"], {})
    assert ledger.open_tries("sampler", ["a", "b"]) == [0, 1]


def test_engines_that_never_come_up_stop_the_stage():
    ledger = Ledger(ErrorLimit(10, 1.0), {})
    for _ in range(2 * STARTS_PER_ACTOR):
        ledger.starting("target", actors=2)
    ledger.dying("target", "EngineDeadError: gone")
    with pytest.raises(DatError, match=r"the target did not start: 6 processes .*EngineDeadError: gone"):
        ledger.starting("target", actors=2)


def test_an_engine_that_came_up_forgives_the_starts_before():
    ledger = Ledger(ErrorLimit(10, 1.0), {})
    for _ in range(10 * STARTS_PER_ACTOR):
        ledger.starting("target", actors=1)
        ledger.started("target")
    assert ledger.reason() is None


def test_the_first_reason_to_stop_counts_and_travels_between_processes():
    ledger = Ledger(ErrorLimit(10, 1.0), {})
    ledger.stop(DatError("first"))
    ledger.stop(DatError("second"))
    assert str(pickle.loads(pickle.dumps(ledger.reason()))) == "first"


def test_the_note_says_what_a_person_waits_for():
    ledger = Ledger(ErrorLimit(10, 1.0), {})
    assert ledger.note() == "waiting for processes"
    ledger.starting("sampler", actors=1)
    ledger.starting("target", actors=1)
    assert ledger.note() == "loading sampler, target"
    ledger.started("sampler")
    ledger.started("target")
    assert ledger.note() == "running"
    ledger.end("sampler", ["a"], {"a": "no"})
    assert ledger.note() == "running, 1 failed"


def test_the_note_says_how_far_rows_have_come_before_the_first_is_stored() -> None:
    ledger = Ledger(ErrorLimit(10, 1.0), {})
    ledger.starting("sampler", actors=1)
    ledger.started("sampler")
    ledger.starting("target", actors=1)
    ledger.end("sampler", ["a", "b", "c"], {"c": "no"})
    assert ledger.note() == "2 drawn, loading target, 1 failed"
    ledger.started("target")
    # A batch that could not be worked on together is tried row by row, and counts once.
    ledger.end("target", ["a", "b"], {}, True)
    ledger.end("target", ["a"], {})
    ledger.end("judge", ["a"], {})
    assert ledger.note() == "2 drawn, 1 answered, 1 judged, 1 failed"
