"""How far a fine-tuned model has drifted from its base on harmless answers. One JSON file a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dat_ray.config.schema import Recipe
from dat_ray.data.retain import load_retain
from dat_ray.data.row_types import Row, RowView
from dat_ray.data.rundir import FIRST_ROUND, RunDir
from dat_ray.data.shards import has_manifest, join, read_table
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.outcomes import of_attack, refusals
from dat_ray.evaluation.questions import OVER_REFUSAL
from dat_ray.evaluation.results import Drift
from dat_ray.evaluation.search.pool import whitebox_workers
from dat_ray.evaluation.store import measure_once
from dat_ray.measures.intervals import cluster_bootstrap
from dat_ray.models.fit import Limits
from dat_ray.progress import stage_line
from dat_ray.training.retain_set import retain_folder

# Rows of one call that measures the drift: each call that ends is progress.
DRIFT_ROWS = 16


def drift(recipe: Recipe, run: RunDir, model: Model, folder: str, answered: Iterable[RowView] = ()) -> Drift | None:
    """Mean KL(base || model) over tokens of harmless responses, nats; None where it is not measured.

    It is measured on the first `evaluation.kl_rows` rows of what `evaluation.kl_data` names, by the rule of training's
    rows: the prompt whole, the response cut to the room of `training.max_tokens`. `left_out` counts rows whose prompt
    leaves no room, `cut` rows whose response was cut; the mean is None where no row is left. The base is the model without
    its adapter: a model without one has no drift to measure.

    Args:
        recipe: resolved.
        run: holds the retain set that training used; without one the recipe's is read, where it has responses.
        model: whose drift.
        folder: of what is measured of models.
        answered: what its base has answered in this suite, rows of schema ATTEMPTS; read with `kl_data` look_alikes alone.
    """
    config = recipe.evaluation
    if not config.kl_rows or model.adapter is None:
        return None
    rows = (_answers(answered) if config.kl_data == "look_alikes" else _retain_rows(recipe, run))[: config.kl_rows]
    if not rows:
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

    stored = measure_once(drift_file(folder, config.kl_data, model.name), model.weights, measure)
    return drift_figures(stored, recipe)


def drift_file(folder: str, data: str, model: str) -> str:
    """Where each row's drift of a model is stored, below the folder of what is measured of models.

    Args:
        folder: that folder.
        data: whose responses: `evaluation.kl_data`.
        model: its name.
    """
    return join(folder, f"{data.replace('_', '-')}-drift-{model}.json")


def drift_figures(stored: Mapping[str, Any], recipe: Recipe) -> Drift:
    """The mean over the rows of one file, with its interval.

    Args:
        stored: what was measured: `values` by row, rows that are `left_out`, how many were `cut`.
        recipe: says whose responses these are, and has the confidence, the resamples and their seed.
    """
    config = recipe.evaluation
    groups = {key: [value] for key, value in stored["values"].items()}
    found = cluster_bootstrap(groups, confidence=config.confidence, resamples=config.bootstrap, seed=recipe.seed)
    left_out, cut = len(stored["left_out"]), stored["cut"]
    figures = {"mean": found.value, "low": found.low, "high": found.high, "n": found.n}
    return Drift(**figures, left_out=left_out, cut=cut, data=config.kl_data)


def base_of(recipe: Recipe, model: Model, asked: Sequence[Model]) -> Model | None:
    """The model without the adapter whose answers to look-alikes the drift of `model` is measured on.

    Args:
        recipe: resolved.
        model: whose drift.
        asked: all models of the evaluation, in order.

    Returns:
        None where no such drift is asked for, or where its base is not asked before it, which is said: models that a person
        names need not have their bases among them.
    """
    config = recipe.evaluation
    if not config.kl_rows or config.kl_data != "look_alikes" or model.adapter is None:
        return None
    for other in asked[: asked.index(model)]:
        if other.adapter is None and other.answers is None and other.source == model.source:
            return other
    stage_line(f"{model.name}: its drift is not measured, which takes the answers of its base: name that model before it")
    return None


def _answers(answered: Iterable[RowView]) -> list[Row]:
    rows = of_attack(answered, OVER_REFUSAL)
    refused = refusals(rows)
    return [
        {"retain_id": row["behavior_id"], "prompt": row["prompt"], "response": row["completion"]}
        for row in rows
        if row["completion"] and refused.get(row["behavior_id"]) is False
    ]


def _retain_rows(recipe: Recipe, run: RunDir) -> list[Row]:
    folder = retain_folder(run, FIRST_ROUND)
    if has_manifest(folder):
        rows: list[Row] = read_table(folder).select(["retain_id", "prompt", "response"]).to_pylist()
        return rows
    if recipe.training.retain is None:
        return []
    return [
        {"retain_id": row.retain_id, "prompt": row.prompt, "response": row.response}
        for row in load_retain(recipe.training.retain)
        if row.response
    ]
