"""A pool of Ray actors that hold engines: hands out chunks, and never waits without a deadline."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from dat_ray.config.cluster import Pool, TimeoutsConfig
from dat_ray.diagnosis import answer_for_stacks, in_one_line
from dat_ray.engines.vllm_env import one_line
from dat_ray.errors import DatError

# The node label that Ray's autoscaler groups nodes by.
SUBCLUSTER_LABEL = "ray-subcluster"
# One chunk at work and one waiting in the actor's queue, so that it never idles while the driver writes a shard.
IN_FLIGHT = 2


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
        """`work(engine, *payload)`."""
        return work(self._engine, *payload)


class Workers:
    """Actors of one role. Use as a context manager: leaving it frees their memory.

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
        host: Any = ray.remote(EngineHost).options(**options)
        self._actors: list[Any] = [host.remote(build) for _ in range(pool.max_actors)]
        self._starting = {actor.start.remote(): actor for actor in self._actors}
        self._ready: list[Any] = []
        self.about: dict[str, Any] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            ray.kill(actor)

    def wait(self) -> dict[str, Any]:
        """Waits for the first engine; returns what it says about itself.

        Raises:
            DatError: it failed to start, or did not within `timeouts.engine_start`.
        """
        while not self._ready:
            self._settle(self._next(list(self._starting), self._timeouts.engine_start))
        return self.about

    def map(self, work: Callable[..., Any], payloads: Sequence[tuple]) -> Iterator[tuple[int, Any]]:
        """Yields `(index, work(engine, *payload))` as chunks finish, in any order.

        Raises:
            DatError: an engine failed or died, or nothing finished within `timeouts.no_progress`.
        """
        self.wait()
        waiting = deque(enumerate(payloads))
        running: dict[Any, tuple[int, Any]] = {}
        while waiting or running:
            for actor in self._ready:
                load = sum(busy is actor for _, busy in running.values())
                while waiting and load < IN_FLIGHT:
                    index, payload = waiting.popleft()
                    running[actor.run.remote(work, payload)] = (index, actor)
                    load += 1
            finished = self._next([*running, *self._starting], self._timeouts.no_progress)
            if finished in running:
                index, _ = running.pop(finished)
                yield index, self._get(finished)
            else:
                self._settle(finished)

    def _settle(self, started: Any) -> None:
        self.about = self._get(started)
        self._ready.append(self._starting.pop(started))

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
            if isinstance(error.cause, DatError):
                raise error.cause from None
            raise DatError(f"{self.role} failed: {one_line(error.cause)}") from error
        except RayActorError as error:
            raise DatError(f"{self.role}: its process died ({one_line(error)}); --resume keeps what is done") from error


def fits(*pools: Pool) -> bool:
    """Whether one actor of each pool has room in the cluster at the same time, going by totals."""
    total = ray.cluster_resources()
    cpus = sum(pool.num_cpus * pool.max_actors for pool in pools)
    gpus = sum(pool.num_gpus * pool.max_actors for pool in pools)
    return cpus <= total.get("CPU", 0) and gpus <= total.get("GPU", 0)
