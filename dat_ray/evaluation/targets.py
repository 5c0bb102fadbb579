"""The engines of the models under attack, one after the other; models that differ in their adapter alone share them."""

from __future__ import annotations

from functools import partial

from dat_ray.config.cluster import Pool
from dat_ray.config.schema import Recipe
from dat_ray.engines.roles import Engines
from dat_ray.engines.switching import AdapterWorkers, Mapper
from dat_ray.engines.workers import Workers
from dat_ray.evaluation.compared import Model


class TargetEngines:
    """Starts engines at a model's first question, so that a finished model is not loaded again. Use as a context manager.

    Where the engines can change their adapter, the next model of the same weights is asked where the one before was: nothing is
    started again. Two target models never lie in memory at the same time.

    Args:
        recipe: resolved.
        engines: how each role's engine is made.
        pool: what the engines may hold.
        stay: whether engines may outlast their model, since nothing else is measured of it in their place.
    """

    def __init__(self, recipe: Recipe, engines: Engines, pool: Pool, stay: bool) -> None:
        self._recipe, self._engines, self._pool, self._stay = recipe, engines, pool, stay
        self._workers: Workers | None = None
        # The model for which they were started, and whether another was asked there since.
        self._first: Model | None = None
        self._shared = False

    def __enter__(self) -> TargetEngines:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def of(self, model: Model) -> Mapper:
        """The engines of a model."""
        target = self._recipe.target
        if self._workers is not None and self._first is not None:
            if model == self._first and not self._shared:
                return self._workers
            if model.config(target) == self._first.config(target):
                self._shared = True
                return AdapterWorkers(self._workers, model.adapter)
            self._end()
        build = partial(self._engines.target, model.config(target), self._pool.threads, model.adapter)
        self._workers, self._first = Workers("target", build, self._pool, self._recipe.timeouts), model
        return self._workers

    def leave(self) -> None:
        """A model is done: its engines end, unless the next one may be asked there."""
        if self._workers is not None and not (self._stay and self._workers.about.get("switches_adapters")):
            self._end()

    def _end(self) -> None:
        if self._workers is not None:
            self._workers.__exit__()
        self._workers, self._first, self._shared = None, None, False
