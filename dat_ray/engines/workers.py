"""A pool of Ray actors that hold engines: hands out chunks, grows and shrinks, replaces lost processes, waits with a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from dat_ray.config.cluster import Pool, TimeoutsConfig
from dat_ray.diagnosis import answer_for_stacks, death_in_a_line, in_one_line
from dat_ray.engines.pieces import NoResult, Piece, Pieces
from dat_ray.errors import DatError, EngineLost, ends_engine, error_line
from dat_ray.progress import stage_line

# The node label that Ray's autoscaler groups nodes by.
SUBCLUSTER_LABEL = "ray-subcluster"
# One chunk at work and one waiting in the actor's queue, so that it never idles while the driver writes a shard.
IN_FLIGHT = 2
# Processes, for each of the pool's actors, that may end one after another while they load their engine.
STARTS_PER_ACTOR = 3
# Processes, for each of the pool's actors, that may end at work without anything being finished in between.
ENDS_PER_ACTOR = 6
# An actor above `min_actors` that has had nothing to do for so long gives its place back: longer than most pauses between
# two calls, since the next one would have to load the engine again.
IDLE_SECONDS = 60.0
# How a process that ends shows itself: killed, crashed, out of memory, or on a node that is gone.
_PROCESS_ENDED = (RayActorError, ObjectLostError, OutOfMemoryError, NodeDiedError, WorkerCrashedError)

# Seconds after which a call that can be cut returns what it has so far, at most, and as a share of `no_progress`.
SLICE_SECONDS, SLICE_SHARE = 30.0, 0.25


@dataclass(frozen=True)
class Unfinished:
    """What a long call returns before it is done, so that its caller sees that it gets on: it is called again where it ran.

    Attributes:
        payload: for the next call. Another process goes on with it where this one is lost, so it holds the whole state.
    """

    payload: tuple[Any, ...]


def slice_seconds(timeouts: TimeoutsConfig) -> float:
    """How long a call that can be cut may take."""
    return min(SLICE_SECONDS, SLICE_SHARE * timeouts.no_progress)


class EngineHost:
    """One engine in its own process. Built in `start`, so that a failure there is an ordinary exception."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        answer_for_stacks()

    def start(self) -> dict[str, Any]:
        """Builds the engine; returns those of a judge's facts that it has, and whether it can change its adapter."""
        self._engine = self._build()
        facts = ("name", "fingerprint", "is_proxy", "deviations", "switches_adapters")
        return {key: getattr(self._engine, key) for key in facts if hasattr(self._engine, key)}

    def run(self, work: Callable[..., Any], payload: tuple[Any, ...]) -> Any:
        """`work(engine, *payload)`.

        Raises:
            EngineLost: the engine is of no more use here, whatever kind of work found that out.
        """
        try:
            return work(self._engine, *payload)
        except Exception as error:
            if ends_engine(error) and not isinstance(error, EngineLost):
                raise EngineLost(f"the engine cannot go on ({error_line(error)})") from error
            raise


class _HostLost(Exception):
    """A host's process or node is gone, or its engine is of no more use in it. The message says which."""


class Workers:
    """Actors of one role, on any node that has room. Use as a context manager: leaving it frees their memory.

    It starts with `min_actors`, grows to `max_actors` while there is work for more, and gives places back that stay idle.
    Actors that the cluster has no room for wait for it, and join in as soon as there is. An actor whose process or node is
    lost is replaced, and its chunks are given to the others. Results do not depend on any of this.

    Args:
        role: for messages: sampler, target, judge.
        build: picklable; makes the engine inside the actor.
        pool: how many actors and what each asks for.
        timeouts: deadlines for starting and for progress.
    """

    def __init__(self, role: str, build: Callable[[], Any], pool: Pool, timeouts: TimeoutsConfig) -> None:
        self.role, self._pool, self._timeouts = role, pool, timeouts
        options: dict[str, Any] = {"num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus}
        if pool.subcluster:
            options["label_selector"] = {SUBCLUSTER_LABEL: pool.subcluster}
        self._host: Any = ray.remote(EngineHost).options(**options)
        self._build = build
        # Another thread than the one that waits for answers may leave the pool.
        self._lock, self._closed = threading.Lock(), False
        self._actors: list[Any] = []
        self._starting: dict[Any, Any] = {}
        # Actors that are up -> since when they have had nothing to do; None while they have.
        self._ready: dict[Any, float | None] = {}
        self._failed_starts = self._ends_in_a_row = 0
        self._size = pool.min_actors
        self.about: dict[str, Any] = {}
        self._fill_up()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            for actor in self._actors:
                ray.kill(actor)

    def _fill_up(self) -> None:
        """Starts actors up to the pool's size. Whoever waits next does so: a lost one's successor is not started before that."""
        while len(self._actors) < self._size:
            with self._lock:
                self._refuse_if_closed()
                actor = self._host.remote(self._build)
                self._actors.append(actor)
            self._starting[actor.start.remote()] = actor

    def _resize(self, calls: int) -> float | None:
        """Makes the pool as large as the calls that are left need, within its bounds.

        Returns:
            Seconds after which an actor that is idle now has been so for long enough; None where all are needed.
        """
        self._size = max(self._pool.min_actors, min(calls, self._pool.max_actors))
        self._fill_up()
        spare = len(self._actors) - self._size
        for ref, actor in list(self._starting.items())[::-1]:
            if spare > 0 and len(self._ready) >= 1:
                del self._starting[ref]
                self._end(actor)
                spare -= 1
        waits = []
        for actor, since in list(self._ready.items()):
            if spare > 0 and since is not None:
                left = since + IDLE_SECONDS - time.monotonic()
                if left > 0:
                    waits.append(left)
                else:
                    self._end(actor)
                spare -= 1
        return min(waits, default=None)

    def _end(self, actor: Any) -> None:
        """Ends an actor for good.

        Raises:
            DatError: the pool was left: that ended its process, and says nothing of what it worked on.
        """
        with self._lock:
            self._refuse_if_closed()
            self._actors.remove(actor)
        self._ready.pop(actor, None)
        # Out of reach is not gone: it must not hold what its successor asks for.
        ray.kill(actor)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise DatError(f"{self.role}: stopped")

    def wait(self) -> dict[str, Any]:
        """Waits for the first engine; returns what it says about itself.

        Raises:
            DatError: it failed to start, did not within `timeouts.engine_start`, or process after process ended in it.
        """
        while not self._ready:
            self._fill_up()
            self._settle(self._next(list(self._starting), self._timeouts.engine_start))
        return self.about

    def map(self, work: Callable[..., Any], payloads: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Yields `(index, work(engine, *payload))` as chunks finish, in any order.

        A call that returns `Unfinished` is called again with what it returned, at once and in the same process. A chunk over
        which processes end is tried again, and taken apart where `work` is marked with `dat_ray.engines.pieces.by_rows`: a row
        that no process survives then has its `failed` result, and the other rows have their own.

        Raises:
            DatError: an engine failed, processes ended over a chunk that cannot be taken apart or without anything being
                finished in between, or nothing finished within `timeouts.no_progress`.
        """
        pieces = Pieces(work, payloads)
        running: dict[Any, tuple[Any, Piece]] = {}
        moved = time.monotonic()
        while pieces.waiting or running:
            idle_after = self._resize(len(pieces.waiting) + len(running))
            if not self._ready:
                self.wait()
                # An engine may take longer to start than a chunk may to finish.
                moved = time.monotonic()
            self._hand_out(work, pieces, running)
            finished = self._next([*running, *self._starting], self._timeouts.no_progress, moved, idle_after)
            if finished is None:
                continue
            if finished in self._starting:
                self._settle(finished)
            else:
                actor, piece = running[finished]
                try:
                    result = self._get(finished)
                except _HostLost as reason:
                    yield from self._lost(pieces, running, actor, reason)
                else:
                    del running[finished]
                    self._ends_in_a_row = 0
                    if isinstance(result, Unfinished):
                        piece.ended, piece.payload = 0, result.payload
                        running[actor.run.remote(work, piece.payload)] = (actor, piece)
                    else:
                        yield from pieces.finished(piece, result)
            # Whoever takes the results may have been busy with one for long.
            moved = time.monotonic()

    def _hand_out(self, work: Callable[..., Any], pieces: Pieces, running: dict[Any, tuple[Any, Piece]]) -> None:
        """A call for every actor that is up, and a second for its queue where that leaves one for those that are coming.

        A suspect is alone with its actor.
        """
        loads = {actor: sum(busy is actor for busy, _ in running.values()) for actor in self._ready}
        closed = {actor for actor, piece in running.values() if piece.suspect}
        for calls in range(1, IN_FLIGHT + 1):
            for actor in loads:
                if actor in closed or (calls > 1 and pieces.waiting and pieces.waiting[0].suspect):
                    continue
                if loads[actor] < calls and len(pieces.waiting) > (0 if calls == 1 else len(self._starting)):
                    piece = pieces.waiting.popleft()
                    running[actor.run.remote(work, piece.payload)] = (actor, piece)
                    loads[actor] += 1
                    if piece.suspect:
                        closed.add(actor)
        for actor, load in loads.items():
            self._ready[actor] = None if load else self._ready[actor] or time.monotonic()

    def _lost(
        self, pieces: Pieces, running: dict[Any, tuple[Any, Piece]], actor: Any, reason: _HostLost
    ) -> Iterator[tuple[int, Any]]:
        """Gives the calls of a lost actor to others. It took them in turn: the first that is not done was at work.

        No other process is started here: what was at work may be given up.
        """
        self._end(actor)
        self._ends_in_a_row += 1
        at_work: Piece | None = None
        for ref, piece in [(ref, piece) for ref, (holder, piece) in running.items() if holder is actor]:
            del running[ref]
            try:
                result = self._get(ref)
            except _HostLost:
                piece.suspect = True
                if at_work is None:
                    at_work = piece
                else:
                    pieces.waiting.appendleft(piece)
                continue
            self._ends_in_a_row = 1
            if isinstance(result, Unfinished):
                piece.ended, piece.payload = 0, result.payload
                pieces.waiting.appendleft(piece)
            else:
                yield from pieces.finished(piece, result)
        assert at_work is not None, "one call of a lost actor is lost"
        if self._ends_in_a_row >= ENDS_PER_ACTOR * self._pool.max_actors:
            self._give_up(f"{self._ends_in_a_row} times in a row with nothing done in between, the last time: {reason}", reason)
        try:
            yield from pieces.process_ended(at_work, str(reason))
        except NoResult as found:
            self._give_up(str(found), reason)
        self._say_lost(reason)

    def _say_lost(self, reason: _HostLost) -> None:
        stage_line(f"{self.role}: {reason}; another process takes over")

    def _give_up(self, how: str, reason: _HostLost) -> None:
        raise DatError(f"{self.role}: its process died {how}; --resume keeps what is done") from reason

    def _settle(self, started: Any) -> None:
        actor = self._starting.pop(started)
        first = not self.about
        try:
            self.about = self._get(started)
        except _HostLost as reason:
            self._end(actor)
            self._failed_starts += 1
            if self._failed_starts == STARTS_PER_ACTOR * self._pool.max_actors:
                raise DatError(
                    f"{self.role} did not start: its process died {self._failed_starts} times while it loaded the engine, "
                    f"the last time: {reason}; --resume keeps what is done"
                ) from reason
            self._say_lost(reason)
        else:
            self._failed_starts = 0
            self._ready[actor] = None
            for deviation in self.about.get("deviations", ()) if first else ():
                stage_line(f"{self.role}: {self.about['name']} {deviation}; its rates don't compare with published ones")

    def _next(self, refs: list[Any], limit: float, moved: float | None = None, wake: float | None = None) -> Any:
        """The next call that is done; None after `wake` seconds without one.

        Raises:
            DatError: there was none within `limit` seconds of `moved`; absent: of now.
        """
        left = limit if moved is None else max(0.0, moved + limit - time.monotonic())
        done, _ = ray.wait(refs, num_returns=1, timeout=left if wake is None else min(wake, left))
        if done:
            return done[0]
        if wake is not None and wake < left:
            return None
        wants = f"{self._pool.num_cpus:g} CPU and {self._pool.num_gpus:g} GPU"
        where = f" on a node labeled {SUBCLUSTER_LABEL}={self._pool.subcluster}" if self._pool.subcluster else ""
        raise DatError(
            f"{self.role}: nothing in {limit:g} s; {len(self._ready)} of {len(self._actors)} engines are up, "
            f"each asks for {wants}{where}; {in_one_line()}; "
            "lower cluster.*.num_cpus, add nodes or raise the deadline in timeouts"
        )

    def _get(self, ref: Any) -> Any:
        try:
            return ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, EngineLost):
                raise _HostLost(str(error.cause)) from error
            if isinstance(error.cause, DatError):
                raise error.cause from None
            raise DatError(f"{self.role} failed: {error_line(error.cause)}") from error
        except _PROCESS_ENDED as error:
            raise _HostLost(f"a process is lost ({death_in_a_line(error)})") from error
        except RayError as error:
            raise DatError(f"{self.role} failed: {error_line(error)}") from error
