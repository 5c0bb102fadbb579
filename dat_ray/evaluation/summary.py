"""From what an evaluation stored to the tree of `metrics.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dat_ray.config.schema import Recipe
from dat_ray.evaluation.attacks.inpainting import INPAINTING
from dat_ray.evaluation.calibration import shipped_calibration
from dat_ray.evaluation.metrics import disagreement, model_metrics, paired_metrics, seed_groups, totals
from dat_ray.measures.prompts import diagnose

# Measured on the model itself: no judge changes them.
SIDE_EFFECTS = ("kl_drift", "utility")

Rows = Sequence[Mapping[str, Any]]


def metrics_tree(
    recipe: Recipe,
    suite: str,
    weights: Mapping[str, str],
    *,
    attempts: Rows,
    likelihoods: Rows,
    prompts: Mapping[str, Rows],
    judges: Mapping[str, Mapping[str, Any] | None],
    side_effects: Mapping[str, Mapping[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    """The tree of `metrics.json`.

    Args:
        recipe: resolved.
        suite: name of the evaluation.
        weights: of each model by name, in order; the first is the one the others are compared with.
        attempts: rows of schema ATTEMPTS of all models.
        likelihoods: rows of schema CANDIDATES with `target_logprob`.
        prompts: rows of schema CANDIDATES that each in-painting attack drew.
        judges: name, fingerprint and is_proxy of `judge`, `second_judge` (or None) and `refusal_judge`.
        side_effects: SIDE_EFFECTS of each model.
        seconds: wall clock of the evaluation.
    """
    config, seed = recipe.evaluation, recipe.seed
    rows = {name: [row for row in attempts if row["model"] == name] for name in weights}
    logprobs: dict[str, dict[str, list[float]]] = {name: {} for name in weights}
    for row in likelihoods:
        if row["target_logprob"] is not None:
            logprobs[row["target_model"]].setdefault(row["behavior_id"], []).append(row["target_logprob"])
    # A pair that could not be scored, as one longer than the model takes: never silently fewer.
    unscored = Counter(row["target_model"] for row in likelihoods if row["error"] is not None)
    cost = totals(attempts)
    models = {
        name: model_metrics(rows[name], logprobs[name], config, seed) | dict(side_effects[name]) | {"weights": weights[name]}
        for name in weights
    }
    for name, block in models.items():
        block["target_logprob"] |= {"errors": unscored[name]}
    return {
        "judge": judges["judge"],
        "models": models,
        "paired": paired_metrics(rows, logprobs, config, seed),
        "groups": seed_groups(models, config.confidence),
        "second_judge": judges["second_judge"],
        "refusal_judge": judges["refusal_judge"],
        "calibration": _calibrations(judges),
        "disagreement": {name: disagreement(rows[name], config, seed) for name in weights} if judges["second_judge"] else None,
        "suite": suite,
        "confidence": config.confidence,
        "seed": seed,
        "attempts": len(attempts),
        "errors": sum(row["error"] is not None for row in attempts),
        "unparsed": {name: sum(row["verdict"] == "unparsed" for row in of_model) for name, of_model in rows.items()},
        "seconds": {"total": seconds} | {name: cost[name]["seconds"] for name in rows},
        "model_calls": {name: int(cost[name]["model_calls"]) for name in rows},
        "sampler": _drawn(recipe, prompts[INPAINTING]) if prompts.get(INPAINTING) else None,
        "samplers": {attack: _drawn(recipe, drawn) for attack, drawn in prompts.items() if drawn},
    }


def _calibrations(judges: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
    """What comes with the project about its judges' agreement with people, by the judge's key."""
    found = {key: about and shipped_calibration(about["name"], about["fingerprint"]) for key, about in judges.items()}
    return {key: figures for key, figures in found.items() if figures}


def _drawn(recipe: Recipe, rows: Rows) -> dict[str, Any]:
    config = recipe.evaluation
    found = diagnose(rows, confidence=config.confidence, resamples=config.bootstrap, seed=recipe.seed)
    return {
        "diversity": found.as_dict(),
        "nfe": sum(row["nfe"] or 0 for row in rows),
        "errors": sum(row["error"] is not None for row in rows),
        "fingerprint": rows[0]["sampler"],
    }
