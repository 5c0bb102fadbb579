"""Scores the pairs of the distribution gap by one model, shard by shard."""

from __future__ import annotations

from collections.abc import Sequence

from dat_ray.config.schema import Recipe
from dat_ray.data.row_types import Row
from dat_ray.engines.calls import Failure
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.gap_pairs import ScoredPair, place_of_set
from dat_ray.evaluation.search.pool import whitebox_workers
from dat_ray.evaluation.store import Chunk, ShardStore
from dat_ray.progress import ProgressCounter


def measure_risks(
    recipe: Recipe,
    suite: str,
    model: Model,
    pairs: Sequence[ScoredPair],
    store: ShardStore,
    counter: ProgressCounter,
) -> list[Row]:
    """Scores what is not stored yet; rows of schema RISKS of this model, in the order of the pairs.

    Args:
        recipe: resolved.
        suite: name of the evaluation.
        model: whose scores.
        pairs: of this model, set by set.
        store: for the rows.
        counter: of the rows that are done.
    """
    from dat_ray.evaluation.search.risk import RiskCall, score_rows

    wanted = _cut(store, suite, model, pairs)
    todo = store.take_from_others(store.load_done(wanted), model.name)
    note = f"{model.name}, distribution gap"
    counter.add(sum(len(chunk.items) for chunk in wanted) - sum(len(chunk.items) for chunk in todo), note)
    if todo:
        calls = [RiskCall([(pair.prompt, pair.target, pair.refusal) for pair in chunk.items], recipe.training) for chunk in todo]
        with whitebox_workers(recipe, model) as workers:
            for index, scores in workers.map(score_rows, [(call,) for call in calls]):
                chunk = todo[index]
                store.put(chunk, [_row(suite, model, *scored) for scored in zip(chunk.items, scores, strict=True)])
                counter.add(len(chunk.items), note)
    return [row for chunk in wanted for row in store.rows_of(chunk)]


def _cut(store: ShardStore, suite: str, model: Model, pairs: Sequence[ScoredPair]) -> list[Chunk[ScoredPair]]:
    """Chunks of one set each: a set that comes to the others, as with another arm of a study, moves no pair of theirs."""
    sets: dict[str, list[ScoredPair]] = {}
    for pair in pairs:
        sets.setdefault(pair.prompt_set, []).append(pair)
    return [
        chunk
        for name, own in sets.items()
        for chunk in store.cut(_stem(model, name), [pair.risk_id(suite, model) for pair in own], own)
    ]


def _stem(model: Model, prompt_set: str) -> str:
    """`base-0-training`, `base-0-training-cat@1`: in the order of shards' names sets stand as in the report."""
    return f"{model.name}-{place_of_set(prompt_set)}-{prompt_set.replace('/', '-')}"


def _row(suite: str, model: Model, pair: ScoredPair, score: tuple[float, float | None] | Failure) -> Row:
    plain, attacked, error = (None, None, f"target: {score.error}") if isinstance(score, Failure) else (*score, None)
    return {
        "risk_id": pair.risk_id(suite, model),
        "model": model.name,
        "prompt_set": pair.prompt_set,
        "behavior_id": pair.behavior_id,
        "source_id": pair.source_id,
        "variant": pair.variant,
        "prompt": pair.prompt,
        "target": pair.target,
        "is_goal": pair.is_goal,
        "plain": plain,
        "attacked": attacked,
        "error": error,
    }
