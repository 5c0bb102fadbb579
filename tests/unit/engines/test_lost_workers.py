"""A pool whose processes end, with a stand-in for Ray: how many are started never depends on which loss is seen first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from dat_ray.config.cluster import Pool, TimeoutsConfig
from dat_ray.engines import workers as workers_module
from dat_ray.engines.pieces import TRIES_PER_CHUNK, by_rows
from dat_ray.engines.workers import ENDS_PER_ACTOR, STARTS_PER_ACTOR, Workers
from dat_ray.errors import DatError

DEADLY = 3


class ProcessEnds(Exception):
    """Raised by work in whose middle the process ends."""


class Reference:
    """A call; done once it has a result, or its process has ended."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call, self.done, self.result = call, False, None


class Actor:
    """Takes its calls in turn, and loses those that it has not done when it ends.

    Args:
        held: what the calls are for.
        loses_answers: whether it ends before the answer to the call before has left it.
    """

    def __init__(self, held: Any, loses_answers: bool) -> None:
        self._held, self._queue, self._ended, self._loses = held, deque[Reference](), False, loses_answers

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> Reference:
            self._queue.append(Reference(lambda: getattr(self._held, name)(*arguments)))
            return self._queue[-1]

        return SimpleNamespace(remote=remote)

    def go_on(self) -> None:
        """Does what is in the queue; after an end, all of it is lost."""
        before: Reference | None = None
        while self._queue:
            reference = self._queue.popleft()
            if not self._ended:
                try:
                    reference.result = reference.call()
                except ProcessEnds:
                    self._ended = True
                    if self._loses and before is not None:
                        before.result = RayActorError()
            before, reference.done = reference, True
            if self._ended:
                reference.result = RayActorError()

    def end(self) -> None:
        self._ended = True
        self.go_on()


class StandIn:
    """As much of Ray as a pool asks for.

    Args:
        newest_first: which of several calls that are done is seen first.
        loses_answers: of `Actor`.

    Attributes:
        started: actors that were asked for.
    """

    def __init__(self, newest_first: bool, loses_answers: bool = False) -> None:
        self.started: list[Actor] = []
        self._newest_first, self._loses = newest_first, loses_answers

    def remote(self, kind: type) -> Any:
        def start(*arguments: Any) -> Actor:
            self.started.append(Actor(kind(*arguments), self._loses))
            return self.started[-1]

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=start))

    def wait(self, references: Sequence[Reference], **_: Any) -> tuple[list[Reference], list[Reference]]:
        assert references, "something is waited for"
        for actor in self.started:
            actor.go_on()
        done = [reference for reference in references if reference.done]
        return [done[-1] if self._newest_first else done[0]], []

    def get(self, reference: Reference) -> Any:
        assert reference.done, "a pool never waits for one call alone"
        if isinstance(reference.result, Exception):
            raise reference.result
        return reference.result

    def kill(self, actor: Actor) -> None:
        actor.end()


@pytest.fixture(params=[False, True], ids=["oldest seen first", "newest seen first"])
def stand_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return installed(StandIn(request.param), monkeypatch)


def installed(ray: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.setattr(workers_module, "ray", ray)
    monkeypatch.setattr(workers_module, "answer_for_stacks", lambda: None)
    return ray


def pool(build: Callable[[], Any] = object, actors: int = 1) -> Workers:
    return Workers("target", build, Pool(min_actors=1, max_actors=actors, num_cpus=0.5), TimeoutsConfig())


@dataclass(frozen=True)
class Values:
    rows: list[int]


@by_rows("rows", failed=lambda reason: f"failed: {reason}")
def double_all(engine: object, values: Values) -> list[int]:
    return [double(engine, value) for value in values.rows]


def double(engine: object, value: int) -> int:
    if value == DEADLY:
        raise ProcessEnds
    return 2 * value


@pytest.mark.parametrize("deadly_at", range(4))
def test_a_chunk_that_is_given_up_starts_no_other_process(deadly_at: int, stand_in: StandIn) -> None:
    values = [10, 20, 30]
    values.insert(deadly_at, DEADLY)
    found: dict[int, Any] = {}
    with pool() as workers, pytest.raises(DatError, match=f"died {TRIES_PER_CHUNK} times over the same rows"):
        found.update(workers.map(double, [(value,) for value in values]))
    assert len(stand_in.started) == TRIES_PER_CHUNK


@pytest.mark.parametrize("deadly_at", range(4))
def test_what_shares_a_queue_with_a_deadly_chunk_is_answered_before_that_is_given_up(deadly_at: int, stand_in: StandIn) -> None:
    values = [10, 20, 30]
    values.insert(deadly_at, DEADLY)
    found = []
    with pool() as workers, pytest.raises(DatError, match="over the same rows"):
        for index, value in workers.map(double, [(value,) for value in values]):
            found.append((values[index], value))
    assert sorted(found) == [(10, 20), (20, 40), (30, 60)]


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("deadly_at", range(6))
def test_a_call_whose_answer_was_lost_is_taken_for_the_deadly_one_once_at_most(
    deadly_at: int, newest_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [10, 20, 30, 40, 50]
    values.insert(deadly_at, DEADLY)
    ray, found = installed(StandIn(newest_first, loses_answers=True), monkeypatch), []
    with pool() as workers, pytest.raises(DatError, match="over the same rows"):
        for index, value in workers.map(double, [(value,) for value in values]):
            found.append((values[index], value))
    assert len(ray.started) in (TRIES_PER_CHUNK, TRIES_PER_CHUNK + 1)
    assert sorted(found) == [(value, 2 * value) for value in (10, 20, 30, 40, 50)]


@pytest.mark.parametrize("newest_first", [False, True])
def test_rows_whose_answers_were_lost_do_not_fail(newest_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(StandIn(newest_first, loses_answers=True), monkeypatch)
    calls = [(Values(rows),) for rows in ([1, 2], [4, DEADLY, 5], [6, 7], [8])]
    with pool() as workers:
        found = dict(workers.map(double_all, calls))
    answers = [value for index in range(4) for value in found[index]]
    assert [value for value in answers if not str(value).startswith("failed: ")] == [2, 4, 8, 10, 12, 14, 16]
    assert len(answers) == 8


def test_processes_that_end_without_anything_done_end_the_stage_and_no_other_is_started(stand_in: StandIn) -> None:
    calls = [(Values([DEADLY] * 4),)] * 2
    with pool() as workers, pytest.raises(DatError, match=f"died {ENDS_PER_ACTOR} times in a row"):
        list(workers.map(double_all, calls))
    assert len(stand_in.started) == ENDS_PER_ACTOR


def test_a_pool_whose_last_process_ended_over_the_last_row_can_be_asked_again(stand_in: StandIn) -> None:
    with pool(lambda: SimpleNamespace(name="tiny")) as workers:
        [(_, [failed])] = workers.map(double_all, [(Values([DEADLY]),)])
        assert failed.startswith("failed: 2 processes ended on this row")
        assert len(stand_in.started) == 2, "nothing is left to do"
        assert workers.wait() == {"name": "tiny"}
        assert dict(workers.map(double, [(1,), (2,)])) == {0: 2, 1: 4}
        assert len(stand_in.started) == 3


def test_an_engine_in_whose_loading_every_process_ends_is_given_up(stand_in: StandIn) -> None:
    def ends() -> None:
        raise ProcessEnds

    with pool(ends) as workers, pytest.raises(DatError, match=f"died {STARTS_PER_ACTOR} times while it loaded"):
        workers.wait()
    assert len(stand_in.started) == STARTS_PER_ACTOR


def test_leaving_a_pool_condemns_no_row(stand_in: StandIn) -> None:
    workers = pool()

    @by_rows("rows", failed=lambda reason: f"failed: {reason}")
    def left_meanwhile(engine: object, values: Values) -> list[int]:
        if len(stand_in.started) == 2:
            workers.__exit__()
        raise ProcessEnds

    with pytest.raises(DatError, match=r"^target: stopped$"):
        list(workers.map(left_meanwhile, [(Values([1]),)]))
    assert len(stand_in.started) == 2
