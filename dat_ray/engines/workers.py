"""A pool of Ray actors that hold engines: hands out chunks, replaces processes that are lost, never waits without a deadline."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from dat_ray.config.cluster import Pool, TimeoutsConfig
from dat_ray.diagnosis import answer_for_stacks, death_in_a_line, in_one_line
from dat_ray.errors import DatError, EngineLost, ends_engine, error_line
from dat_ray.progress import stage_line

# The node label that Ray's autoscaler groups nodes by.
SUBCLUSTER_LABEL = "ray-subcluster"
# One chunk at work and one waiting in the actor's queue, so that it never idles while the driver writes a shard.
IN_FLIGHT = 2
# A chunk that was in the hands of this many processes when they ended is not given to another one.
TRIES_PER_CHUNK = 3
# Processes, for each of the pool's actors, that may end one after another while they load their engine.
STARTS_PER_ACTOR = 3


# Seconds after which a call that can be cut returns what it has so far, at most, and as a share of `no_progress`.
SLICE_SECONDS, SLICE_SHARE = 30.0, 0.25


@dataclass(frozen=True)
class Unfinished:
    """What a long call returns before it is done, so that its caller sees that it gets on: it is called again where it ran.

    Attributes:
        payload: for the next call. Another process goes on with it where this one is lost, so it holds the whole state.
    """

    payload: tuple


def slice_seconds(timeouts: TimeoutsConfig) -> float:
    """How long a call that can be cut may take."""
    return min(SLICE_SECONDS, SLICE_SHARE * timeouts.no_progress)


class EngineHost:
    """One engine in its own process. Built in `start`, so that a failure there is an ordinary exception."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        answer_for_stacks()

    def start(self) -> dict[str, Any]:
        """Builds the engine; returns those of name, fingerprint and is_proxy that it has."""
        self._engine = self._build()
        facts = ("name", "fingerprint", "is_proxy")
        return {key: getattr(self._engine, key) for key in facts if hasattr(self._engine, key)}

    def run(self, work: Callable[..., Any], payload: tuple) -> Any:
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

    An actor whose process or node is lost is replaced, and its chunks are given to the others.

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
        self._ready: list[Any] = []
        self._failed_starts = 0
        self.about: dict[str, Any] = {}
        for _ in range(pool.max_actors):
            self._launch()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            for actor in self._actors:
                ray.kill(actor)

    def _launch(self) -> None:
        with self._lock:
            if self._closed:
                raise DatError(f"{self.role}: stopped")
            actor = self._host.remote(self._build)
            self._actors.append(actor)
        self._starting[actor.start.remote()] = actor

    def _replace(self, actor: Any, reason: _HostLost) -> None:
        """Starts another actor for one that is lost, unless that was done at another of its chunks."""
        with self._lock:
            if actor not in self._actors:
                return
            self._actors.remove(actor)
        if actor in self._ready:
            self._ready.remove(actor)
        # Out of reach is not gone: it must not hold what its successor asks for.
        ray.kill(actor)
        self._launch()
        stage_line(f"{self.role}: {reason}; another process takes over")

    def wait(self) -> dict[str, Any]:
        """Waits for the first engine; returns what it says about itself.

        Raises:
            DatError: it failed to start, did not within `timeouts.engine_start`, or process after process ended in it.
        """
        while not self._ready:
            self._settle(self._next(list(self._starting), self._timeouts.engine_start))
        return self.about

    def map(self, work: Callable[..., Any], payloads: Sequence[tuple]) -> Iterator[tuple[int, Any]]:
        """Yields `(index, work(engine, *payload))` as chunks finish, in any order.

        A call that returns `Unfinished` is called again with what it returned, at once and in the same process.

        Raises:
            DatError: an engine failed, several processes ended over the same chunk, or nothing finished within
                `timeouts.no_progress`.
        """
        waiting = deque(enumerate(payloads))
        running: dict[Any, tuple[int, Any, tuple]] = {}
        lost: Counter[int] = Counter()
        while waiting or running:
            self.wait()
            for actor in self._ready:
                load = sum(busy is actor for _, busy, _ in running.values())
                while waiting and load < IN_FLIGHT:
                    index, payload = waiting.popleft()
                    running[actor.run.remote(work, payload)] = (index, actor, payload)
                    load += 1
            finished = self._next([*running, *self._starting], self._timeouts.no_progress)
            if finished in self._starting:
                self._settle(finished)
                continue
            index, actor, payload = running.pop(finished)
            try:
                result = self._get(finished)
            except _HostLost as reason:
                lost[index] += 1
                if lost[index] == TRIES_PER_CHUNK:
                    raise DatError(
                        f"{self.role}: its process died {TRIES_PER_CHUNK} times over the same rows, the last time: {reason}; "
                        "--resume keeps what is done"
                    ) from reason
                self._replace(actor, reason)
                waiting.appendleft((index, payload))
                continue
            if isinstance(result, Unfinished):
                lost[index] = 0
                running[actor.run.remote(work, result.payload)] = (index, actor, result.payload)
            else:
                yield index, result

    def _settle(self, started: Any) -> None:
        actor = self._starting.pop(started)
        try:
            self.about = self._get(started)
        except _HostLost as reason:
            self._failed_starts += 1
            if self._failed_starts == STARTS_PER_ACTOR * self._pool.max_actors:
                raise DatError(
                    f"{self.role} did not start: its process died {self._failed_starts} times while it loaded the engine, "
                    f"the last time: {reason}; --resume keeps what is done"
                ) from reason
            self._replace(actor, reason)
        else:
            self._failed_starts = 0
            self._ready.append(actor)

    def _next(self, refs: list[Any], seconds: float) -> Any:
        done, _ = ray.wait(refs, num_returns=1, timeout=seconds)
        if done:
            return done[0]
        wants = f"{self._pool.num_cpus:g} CPU and {self._pool.num_gpus:g} GPU"
        where = f" on a node labeled {SUBCLUSTER_LABEL}={self._pool.subcluster}" if self._pool.subcluster else ""
        raise DatError(
            f"{self.role}: nothing in {seconds:g} s; {len(self._ready)} of {len(self._actors)} engines are up, "
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
        except (RayActorError, ObjectLostError) as error:
            raise _HostLost(f"a process is lost ({death_in_a_line(error)})") from error


def fits(*pools: Pool) -> bool:
    """Whether one actor of each pool has room in the cluster at the same time, going by totals."""
    total = ray.cluster_resources()
    cpus = sum(pool.num_cpus * pool.max_actors for pool in pools)
    gpus = sum(pool.num_gpus * pool.max_actors for pool in pools)
    return cpus <= total.get("CPU", 0) and gpus <= total.get("GPU", 0)
