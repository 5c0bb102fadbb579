"""The attacker model at work: writes what an attack asks of it, once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from dat_ray.config.schema import Recipe
from dat_ray.engines.calls import CompletionCall, complete
from dat_ray.engines.chat_reply import after_reasoning
from dat_ray.engines.pool_size import beside
from dat_ray.engines.roles import Engines
from dat_ray.engines.workers import Workers
from dat_ray.evaluation.judges import judge_pools
from dat_ray.evaluation.questions import AttackerRequest
from dat_ray.evaluation.store import ShardStore
from dat_ray.progress import ProgressCounter


class Attacker:
    """Answers of the attacker model, stored before they are used.

    Args:
        recipe: its `evaluation.attacker` says which model.
        engines: how an engine is made.
        store: of rows of schema REWRITES.
        counter: of the rows that are done.
    """

    def __init__(self, recipe: Recipe, engines: Engines, store: ShardStore, counter: ProgressCounter) -> None:
        self._recipe, self._engines, self._store, self._counter = recipe, engines, store, counter
        self._workers: Workers | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within it the model may be asked; it starts at the first request that is not stored, and is gone afterwards."""
        try:
            yield
        finally:
            if self._workers is not None:
                self._workers.__exit__()
                self._workers = None

    def write(self, stem: str, requests: Sequence[AttackerRequest], max_new_tokens: int | None = None) -> list[dict[str, Any]]:
        """Rows of schema REWRITES, one for each request, in order.

        Args:
            stem: of the shards' names; the same requests under the same name are never asked twice.
            requests: all at one temperature.
            max_new_tokens: of one answer; absent: the attacker's own setting.
        """
        config = self._recipe.evaluation.attacker
        assert config is not None, "check_attacks has asked for an attacker"
        ids = [request.rewrite_id(config.model) for request in requests]
        wanted = self._store.cut(stem, ids, requests)
        todo = self._store.load_done(wanted)
        self._counter.add(len(requests) - sum(len(chunk.items) for chunk in todo), stem)
        calls = [
            CompletionCall(
                [request.text for request in chunk.items],
                max_new_tokens or config.max_new_tokens,
                config.batch_size,
                chunk.items[0].temperature,
                [request.seed for request in chunk.items],
                role="attacker",
            )
            for chunk in todo
        ]
        if todo:
            for index, replies in self._asked().map(complete, [(call,) for call in calls]):
                chunk = todo[index]
                rows = [
                    {
                        "rewrite_id": identifier,
                        "request": request.text,
                        "text": None if reply.text is None else after_reasoning(reply.text),
                        "seed": request.seed,
                        "seconds": reply.seconds,
                        "error": None if reply.error is None else f"attacker: {reply.error}",
                    }
                    for identifier, request, reply in zip(chunk.ids, chunk.items, replies, strict=True)
                ]
                self._store.put(chunk, rows)
                self._counter.add(len(rows), stem)
        return [row for chunk in wanted for row in self._store.rows_of(chunk)]

    def _asked(self) -> Workers:
        if self._workers is None:
            config, cluster = self._recipe.evaluation.attacker, self._recipe.cluster
            assert config is not None
            # The target may start while it is up.
            pool = beside(cluster.attacker, cluster.target, *judge_pools(self._recipe).values())
            build = partial(self._engines.target, config, pool.threads, None)
            self._workers = Workers("attacker", build, pool, self._recipe.timeouts)
        return self._workers
