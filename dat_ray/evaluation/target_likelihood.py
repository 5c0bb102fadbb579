"""Log p of the held-out targets, given the goal alone: what refusals are measured by without a judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dat_ray.config.schema import Recipe
from dat_ray.data.ids import row_id
from dat_ray.data.rundir import FIRST_ROUND
from dat_ray.engines.calls import Failure, LikelihoodCall, logprob
from dat_ray.engines.switching import Mapper
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.questions import Behavior
from dat_ray.evaluation.store import ShardStore
from dat_ray.progress import ProgressCounter

# Folder below the suite's.
LIKELIHOODS = "target_logprob"


def _goal_rows(suite: str, model: Model, behaviors: Sequence[Behavior]) -> list[dict[str, Any]]:
    """Rows of schema CANDIDATES with the goal as the prompt, one for each target."""
    rows: list[dict[str, Any]] = []
    for behavior in behaviors:
        for target_index, target in behavior.targets:
            rows.append(
                {
                    "candidate_id": row_id(
                        "target_logprob", suite, model.name, model.weights, behavior.behavior_id, target_index, target
                    ),
                    "behavior_id": behavior.behavior_id,
                    "target_index": target_index,
                    "round": FIRST_ROUND,
                    "sample_index": 0,
                    "goal": behavior.goal,
                    "target": target,
                    "refusal": "",
                    # Nothing was sampled: the goal itself is the prompt.
                    "prompt_tokens": 0,
                    "seed": 0,
                    "sampler": "",
                    "prompt": behavior.goal,
                    "target_model": model.name,
                    "adapter": model.weights if model.adapter else None,
                    "error": None,
                }
            )
    return rows


def measure_likelihoods(
    recipe: Recipe,
    suite: str,
    model: Model,
    behaviors: Sequence[Behavior],
    target: Callable[[], Mapper],
    store: ShardStore,
    counter: ProgressCounter,
) -> None:
    """Stores mean log p(target | goal), nats a token, end of turn left out, as `target_logprob` in rows of schema CANDIDATES.

    Args:
        recipe: resolved.
        suite: name of the evaluation.
        model: whose likelihoods.
        behaviors: with their targets.
        target: the model's workers, started only if something is missing.
        store: for the rows.
        counter: of the rows that are done.
    """
    asked = _goal_rows(suite, model, behaviors)
    wanted = store.cut(model.name, [row["candidate_id"] for row in asked], asked)
    todo = store.load_done(wanted)
    counter.add(sum(len(chunk.items) for chunk in wanted) - sum(len(chunk.items) for chunk in todo), model.name)
    if not todo:
        return
    batch_size = recipe.target.batch_size
    calls = [LikelihoodCall([(row["prompt"], row["target"]) for row in chunk.items], batch_size) for chunk in todo]
    for index, values in target().map(logprob, [(call,) for call in calls]):
        chunk = todo[index]
        rows = [
            row | ({"error": f"target: {value.error}"} if isinstance(value, Failure) else {"target_logprob": value})
            for row, value in zip(chunk.items, values, strict=True)
        ]
        store.put(chunk, rows)
        counter.add(len(rows), f"{model.name}, log p(target)")
