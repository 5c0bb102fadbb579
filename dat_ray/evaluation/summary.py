"""From what an evaluation stored to `metrics.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dat_ray.config.schema import Recipe
from dat_ray.data.row_types import RowViews
from dat_ray.evaluation.calibration import shipped_calibration, shipped_goal_calibration
from dat_ray.evaluation.disagreement import disagreement
from dat_ray.evaluation.estimates import JudgeFacts
from dat_ray.evaluation.judge_results import Calibration
from dat_ray.evaluation.metrics import counted, model_metrics, paired_metrics, seed_groups, totals
from dat_ray.evaluation.prompt_results import GoalCalibration
from dat_ray.evaluation.results import Metrics, ModelMetrics, Sampling, SideEffects, SuffixSearches
from dat_ray.measures.prompt_statistics import diagnose
from dat_ray.measures.searches import survival

# Whose prompts' diversity `sampler` shows, as before there were several samplers.
INPAINTING = "inpainting"


@dataclass(frozen=True)
class StoredRows:
    """What an evaluation stored.

    Attributes:
        attempts: rows of schema ATTEMPTS of all models.
        likelihoods: rows of schema CANDIDATES with `target_logprob`.
        prompts: rows of schema CANDIDATES that each in-painting attack drew.
        searches: rows of schema SEARCHES of all models.
    """

    attempts: RowViews
    likelihoods: RowViews
    prompts: Mapping[str, RowViews]
    searches: RowViews


def suite_metrics(
    recipe: Recipe,
    suite: str,
    weights: Mapping[str, str],
    stored: StoredRows,
    *,
    judges: Mapping[str, Mapping[str, Any] | None],
    side_effects: Mapping[str, SideEffects],
    seconds: float,
) -> Metrics:
    """All of `metrics.json`.

    Args:
        recipe: resolved.
        suite: its name.
        weights: digest of each model's weights.
        stored: of this evaluation.
        judges: the facts (`JudgeFacts`) of `judge`, `second_judge` (or None) and `refusal_judge`.
        side_effects: of each model.
        seconds: wall clock of the evaluation.
    """
    config, seed = recipe.evaluation, recipe.seed
    rows = {name: [row for row in stored.attempts if row["model"] == name] for name in weights}
    logprobs: dict[str, dict[str, list[float]]] = {name: {} for name in weights}
    for row in stored.likelihoods:
        if row["target_logprob"] is not None:
            logprobs[row["target_model"]].setdefault(row["behavior_id"], []).append(row["target_logprob"])
    # A pair that could not be scored, as one longer than the model takes: never silently fewer.
    unscored = Counter(row["target_model"] for row in stored.likelihoods if row["error"] is not None)
    cost = totals(stored.attempts)
    who = {key: None if facts is None else JudgeFacts.model_validate(facts) for key, facts in judges.items()}
    first_judge = who["judge"]
    assert first_judge is not None

    def of_model(name: str) -> ModelMetrics:
        found = model_metrics(rows[name], logprobs[name], config, seed)
        likelihood = found.target_logprob.model_copy(update={"errors": unscored[name]})
        effects = side_effects[name]
        beside = {"kl_drift": effects.kl_drift, "utility": effects.utility, "gap": effects.gap}
        return found.model_copy(update={"target_logprob": likelihood, "weights": weights[name], **beside})

    models = {name: of_model(name) for name in weights}
    samplers = {attack: _drawn(recipe, drawn) for attack, drawn in stored.prompts.items() if drawn}
    return Metrics(
        judge=first_judge,
        models=models,
        paired=paired_metrics(rows, logprobs, config, seed),
        groups=seed_groups(models, rows, config),
        second_judge=who["second_judge"],
        refusal_judge=who["refusal_judge"],
        calibration=_calibrations(who),
        goal_calibration=_goal_calibration(recipe),
        disagreement={name: disagreement(counted(rows[name], config), config) for name in weights}
        if who["second_judge"]
        else None,
        suite=suite,
        confidence=config.confidence,
        seed=seed,
        attempts=len(stored.attempts),
        errors=sum(row["error"] is not None for row in stored.attempts),
        unparsed={name: sum(row["verdict"] == "unparsed" for row in attempted) for name, attempted in rows.items()},
        seconds={"total": seconds} | {name: cost[name]["seconds"] for name in rows},
        model_calls={name: int(cost[name]["model_calls"]) for name in rows},
        searches={
            name: {attack: SuffixSearches(**counts) for attack, counts in of_attacks.items()}
            for name, of_attacks in survival(stored.searches).items()
        },
        sampler=samplers.get(INPAINTING),
        samplers=samplers,
    )


def _calibrations(judges: Mapping[str, JudgeFacts | None]) -> dict[str, Calibration]:
    """What comes with the project about its judges' agreement with people, by the judge's key."""
    found = {key: shipped_calibration(facts.name, facts.fingerprint) for key, facts in judges.items() if facts is not None}
    return {key: figures for key, figures in found.items() if figures is not None}


def _goal_calibration(recipe: Recipe) -> GoalCalibration | None:
    """How far the floor of drawn prompts agrees with readers; None without a floor, or for an encoder that nobody measured."""
    if recipe.evaluation.min_goal_similarity is None or recipe.encoder is None:
        return None
    return shipped_goal_calibration(recipe.encoder.model)


def _drawn(recipe: Recipe, rows: RowViews) -> Sampling:
    config = recipe.evaluation
    return Sampling(
        diversity=diagnose(rows, confidence=config.confidence, resamples=config.bootstrap, seed=recipe.seed),
        nfe=sum(row["nfe"] or 0 for row in rows),
        errors=sum(row["error"] is not None for row in rows),
        fingerprint=rows[0]["sampler"],
    )
