"""Benchmarks of the models under evaluation, by lm-eval on workers of their own. One JSON file a model."""

from __future__ import annotations

from functools import partial
from typing import Any

from dat_ray.config.schema import Recipe
from dat_ray.data.shards import join
from dat_ray.data.stored import well_formed
from dat_ray.engines.workers import Workers, slice_seconds
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.estimates import Benchmark
from dat_ray.evaluation.store import measure_once


def utility(recipe: Recipe, model: Model, folder: str) -> dict[str, dict[str, Benchmark]]:
    """Task -> metric -> figures of lm-eval; empty without tasks."""
    config = recipe.evaluation
    if not config.utility.tasks:
        return {}

    def measure() -> dict[str, Any]:
        from dat_ray.evaluation.lm_eval_runner import BenchmarkSettings, run_task

        pool, tasks = recipe.cluster.target, config.utility.tasks
        build = partial(_benchmarked, model.config(recipe.target), pool.threads, model.adapter)
        answers, seconds = join(folder, f"answers-{model.name}"), slice_seconds(recipe.timeouts)
        settings = BenchmarkSettings(config.utility, config.confidence, recipe.seed, model.weights, answers, seconds)
        with Workers("benchmarks", build, pool, recipe.timeouts) as workers:
            parts = dict(workers.map(run_task, [(task, settings) for task in tasks]))
        found = {name: figures for number in range(len(tasks)) for name, figures in parts[number].items()}
        return {name: {metric: one.model_dump() for metric, one in figures.items()} for name, figures in found.items()}

    path = join(folder, f"utility-{model.name}.json")
    stored = measure_once(path, model.weights, measure)
    with well_formed(path):
        return {name: {metric: Benchmark(**one) for metric, one in figures.items()} for name, figures in stored.items()}


def _benchmarked(*arguments: Any) -> Any:
    from dat_ray.evaluation.lm_eval_runner import Benchmarked

    return Benchmarked(*arguments)
