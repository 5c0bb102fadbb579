"""Workers that hold a model with its gradients, and the searches that they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dat_ray.config.schema import Recipe
from dat_ray.engines.workers import Workers, slice_seconds
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.questions import SearchRequest
from dat_ray.evaluation.store import ShardStore
from dat_ray.progress import ProgressCounter


def whitebox_workers(recipe: Recipe, model: Model) -> Workers:
    """The model with its gradients, in the target's place."""
    pool = recipe.cluster.target
    build = partial(_whitebox, model.config(recipe.target), pool.threads, model.adapter, recipe.evaluation)
    return Workers("target with gradients", build, pool, recipe.timeouts)


def _whitebox(*arguments: Any) -> Any:
    from dat_ray.evaluation.search.whitebox import Whitebox

    return Whitebox(*arguments)


def run_searches(
    recipe: Recipe,
    model: Model,
    attack: str,
    method: Callable[..., Any],
    requests: Sequence[SearchRequest],
    store: ShardStore,
    counter: ProgressCounter,
) -> list[dict[str, Any]]:
    """Does the searches that are not stored yet, one shard each; rows of schema SEARCHES in the order of the requests."""
    from dat_ray.evaluation.search.whitebox import SearchCall, search_slice

    note = f"{model.name}, {attack}"
    wanted = store.cut(f"{model.name}-{attack}", [one.search_id for one in requests], requests)
    todo = store.load_done(wanted)
    counter.add(len(wanted) - len(todo), note)
    if todo:
        with whitebox_workers(recipe, model) as workers:
            seconds = slice_seconds(recipe.timeouts)
            calls = [SearchCall(method, chunk.items[0], seconds) for chunk in todo]
            for index, found in workers.map(search_slice, [(call,) for call in calls]):
                [request] = todo[index].items
                about = {"search_id": request.search_id, "model": model.name, "behavior_id": request.behavior_id}
                about["attack"] = attack
                store.put(todo[index], [about | found])
                counter.add(1, note)
    return [row for chunk in wanted for row in store.rows_of(chunk)]
