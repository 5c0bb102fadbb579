"""Scores harmful responses on a model with its gradients, as they are and under the attack of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dat_ray.config.training import TrainingConfig
from dat_ray.engines.calls import Failure, call_isolated
from dat_ray.engines.pieces import by_rows
from dat_ray.evaluation.search.whitebox import Whitebox
from dat_ray.training.attacked import HarmfulLogprob, HarmfulScorer


@dataclass(frozen=True)
class RiskCall:
    """Rows to score.

    Attributes:
        rows: prompt, harmful response and refusal of each.
        training: whose attack, and as many rows at once.
    """

    rows: Sequence[tuple[str, str, str]]
    training: TrainingConfig


@by_rows("rows", failed=Failure)
def score_rows(engine: Whitebox, asked: RiskCall) -> list[HarmfulLogprob | Failure]:
    """Of each row its log-likelihoods, prompt and response whole; one that is empty or too long fails alone."""
    scorer = HarmfulScorer(engine.network, asked.training)

    def score(rows: Sequence[tuple[str, str, str]]) -> list[HarmfulLogprob]:
        prompts = [prompt for prompt, _, _ in rows]
        harmful = engine.text.scored(prompts, [target for _, target, _ in rows])
        refused = engine.text.scored(prompts, [refusal for _, _, refusal in rows])
        return scorer.score(list(zip(harmful, refused, strict=True)))

    return call_isolated(score, asked.rows, asked.training.micro_rows or asked.training.harmful_rows)
