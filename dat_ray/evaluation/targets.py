"""The engines of the models under attack, one after the other; models that differ in their adapter alone share them."""

from __future__ import annotations

from functools import partial

from dat_ray.engines.pool_size import beside
from dat_ray.engines.roles import Engines
from dat_ray.engines.switching import AdapterWorkers, Mapper
from dat_ray.engines.workers import Workers
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.suite import Suite


class TargetEngines:
    """Starts engines at a model's first question, so that a finished model is not loaded again. Use as a context manager.

    Where the engines can change their adapter, the next model of the same weights is asked where the one before was: nothing is
    started again. Two target models never lie in memory at the same time.

    Args:
        suite: whose models are asked.
        engines: how each role's engine is made.
    """

    def __init__(self, suite: Suite, engines: Engines) -> None:
        self._recipe, self._engines = suite.recipe, engines
        together = suite.attacker_works_beside_targets
        cluster, config = suite.recipe.cluster, suite.recipe.evaluation
        self._pool = beside(cluster.target, cluster.attacker, cluster.judge) if together else cluster.target
        # What else is measured of a model has engines of its own in the target's place.
        searched = any(attack.planned().searched for attack in suite.attacks)
        self._place_is_needed = bool(searched or config.kl_rows or config.utility.tasks)
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
        if self._workers is not None and (self._place_is_needed or not self._workers.about.get("switches_adapters")):
            self._end()

    def _end(self) -> None:
        if self._workers is not None:
            self._workers.__exit__()
        self._workers, self._first, self._shared = None, None, False
