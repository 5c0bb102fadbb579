"""The attacker model at work: writes what an attack asks of it, once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from dat_ray.config.schema import Recipe
from dat_ray.engines.chat_reply import after_reasoning
from dat_ray.engines.workers import Workers
from dat_ray.evaluation import answers
from dat_ray.evaluation.asking import Counter
from dat_ray.evaluation.attacks.rewriting import Rewriting
from dat_ray.evaluation.shelf import Shelf, chunks
from dat_ray.generation.actors import Engines


class Attacker:
    """Answers of the attacker model, stored before they are used.

    Args:
        recipe: its `evaluation.attacker` says which model.
        engines: how an engine is made.
        shelf: of rows of schema REWRITES.
        counter: of the rows that are done.
    """

    def __init__(self, recipe: Recipe, engines: Engines, shelf: Shelf, counter: Counter) -> None:
        self._recipe, self._engines, self._shelf, self._counter = recipe, engines, shelf, counter
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

    def write(self, stem: str, requests: Sequence[Rewriting], max_new_tokens: int | None = None) -> list[dict[str, Any]]:
        """Rows of schema REWRITES, one for each request, in order.

        Args:
            stem: of the shards' names; the same requests under the same name are never asked twice.
            requests: all at one temperature.
            max_new_tokens: of one answer; absent: the attacker's own setting.
        """
        config = self._recipe.evaluation.attacker
        assert config is not None, "the recipe's validator asks for an attacker"
        ids = [request.rewrite_id(config.model) for request in requests]
        wanted = list(chunks(stem, ids, requests, self._recipe.generation.rows_per_block))
        todo = self._shelf.missing(wanted)
        self._counter.add(len(requests) - sum(len(chunk.items) for chunk in todo), stem)
        payloads = [
            (
                [request.request for request in chunk.items],
                max_new_tokens or config.max_new_tokens,
                config.batch_size,
                chunk.items[0].temperature,
                [request.seed for request in chunk.items],
                None,
                "attacker",
            )
            for chunk in todo
        ]
        if todo:
            for index, replies in self._asked().map(answers.complete, payloads):
                chunk = todo[index]
                rows = [
                    {
                        "rewrite_id": identifier,
                        "request": request.request,
                        "text": None if reply.text is None else after_reasoning(reply.text),
                        "seed": request.seed,
                        "seconds": reply.seconds,
                        "error": None if reply.error is None else f"attacker: {reply.error}",
                    }
                    for identifier, request, reply in zip(chunk.ids, chunk.items, replies, strict=True)
                ]
                self._shelf.put(chunk, rows)
                self._counter.add(len(rows), stem)
        return [row for chunk in wanted for row in self._shelf.of(chunk)]

    def _asked(self) -> Workers:
        if self._workers is None:
            config, pool = self._recipe.evaluation.attacker, self._recipe.cluster.attacker
            assert config is not None
            build = partial(self._engines.target, config, pool.threads, None)
            self._workers = Workers("attacker", build, pool, self._recipe.timeouts)
        return self._workers
