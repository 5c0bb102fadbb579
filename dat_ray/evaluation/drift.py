"""How far a fine-tuned model has drifted from its base on retain data. One JSON file a model."""

from __future__ import annotations

from typing import Any

from dat_ray.config.schema import Recipe
from dat_ray.data.retain import load_retain
from dat_ray.data.rundir import FIRST_ROUND, RunDir
from dat_ray.data.shards import has_manifest, join, read_table
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.results import Drift
from dat_ray.evaluation.search.pool import whitebox_workers
from dat_ray.evaluation.store import measure_once
from dat_ray.measures.intervals import cluster_bootstrap
from dat_ray.models.fit import Limits
from dat_ray.training.retain_set import retain_folder

# Rows of one call that measures the drift: each call that ends is progress.
DRIFT_ROWS = 16


def drift(recipe: Recipe, run: RunDir, model: Model, folder: str) -> Drift | None:
    """Mean KL(base || model) over tokens of retain responses, nats; None where it is not measured.

    It is measured on the first `evaluation.kl_rows` rows of the retain set that training used, or of the recipe's where
    they have responses, by the rule of training's rows: the prompt whole, the response cut to the room of
    `training.max_tokens`. `left_out` counts rows whose prompt leaves no room, `cut` rows whose response was cut; the mean is
    None where no row is left. The base is the model without its adapter: a model without one has no drift to measure.
    """
    rows = _retain_rows(recipe, run)[: recipe.evaluation.kl_rows]
    if not rows or model.adapter is None:
        return None

    def measure() -> dict[str, Any]:
        from dat_ray.evaluation.search.whitebox import DriftCall, drift_all

        pairs = [(row["prompt"], row["response"]) for row in rows]
        # No limit of the response: training may act on its first tokens only, and the rest drifts all the same.
        limits = Limits(recipe.training.max_tokens)
        calls = [DriftCall(pairs[start : start + DRIFT_ROWS], limits) for start in range(0, len(pairs), DRIFT_ROWS)]
        with whitebox_workers(recipe, model) as workers:
            parts = dict(workers.map(drift_all, [(call,) for call in calls]))
        measured = [one for number in range(len(calls)) for one in parts[number]]
        by_row = {row["retain_id"]: one for row, one in zip(rows, measured, strict=True)}
        return {
            "values": {key: one.value for key, one in by_row.items() if one is not None},
            "left_out": [key for key, one in by_row.items() if one is None],
            "cut": sum(one.cut for one in measured if one is not None),
        }

    stored = measure_once(join(folder, f"retain-drift-{model.name}.json"), model.weights, measure)
    config, groups = recipe.evaluation, {key: [value] for key, value in stored["values"].items()}
    found = cluster_bootstrap(groups, confidence=config.confidence, resamples=config.bootstrap, seed=recipe.seed)
    left_out, cut = len(stored["left_out"]), stored["cut"]
    return Drift(mean=found.value, low=found.low, high=found.high, n=found.n, left_out=left_out, cut=cut)


def _retain_rows(recipe: Recipe, run: RunDir) -> list[dict[str, Any]]:
    if not recipe.evaluation.kl_rows:
        return []
    folder = retain_folder(run, FIRST_ROUND)
    if has_manifest(folder):
        rows: list[dict[str, Any]] = read_table(folder).select(["retain_id", "prompt", "response"]).to_pylist()
        return rows
    if recipe.training.retain is None:
        return []
    return [
        {"retain_id": row.retain_id, "prompt": row.prompt, "response": row.response}
        for row in load_retain(recipe.training.retain)
        if row.response
    ]
