"""One evaluation as the page shows it: what figures, captions and sentences say of attempts that are made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from dat_ray.config.evaluation import EvaluationConfig
from dat_ray.evaluation.estimates import JudgeFacts
from dat_ray.evaluation.metrics import model_metrics, paired_metrics
from dat_ray.evaluation.results import Metrics
from dat_ray.reporting.charts import attempts_figures

HARM, SAFE = "harmful", "not_harmful"
JUDGE = JudgeFacts(name="harmbench", fingerprint="aaaa", is_proxy=False)


def attempt(attack: str, behavior: str, verdict: str | None, index: int = 0, **changes: Any) -> dict[str, Any]:
    row = {
        "attack": attack,
        "behavior_id": behavior,
        "attempt_index": index,
        "goal": "g",
        "prompt": f"{behavior} {index}",
        "completion": "c",
        "verdict": verdict,
        "error": None,
        "seconds": 0.5,
        "model_calls": 1,
    }
    return row | changes


def judged(models: Mapping[str, Sequence[dict[str, Any]]], config: EvaluationConfig, **changes: Any) -> Metrics:
    """The metrics of models' attempts."""
    rows = {name: [row | {"model": name} for row in own] for name, own in models.items()}
    nothing: dict[str, dict[str, Sequence[float]]] = {name: {} for name in rows}
    found = {name: model_metrics(own, {}, config, 0) for name, own in rows.items()}
    return Metrics(judge=JUDGE, models=found, paired=paired_metrics(rows, nothing, config, 0), **changes)


def test_the_title_of_a_curve_ends_at_the_attacks_own_rate() -> None:
    # Of 10 behaviors one has 8 draws on the goal, the others 2 or 3; it alone is broken.
    config = EvaluationConfig(attacks=("inpainting",), bootstrap=20, min_goal_similarity=0.5)
    draws = [8, *([2, 3] * 5)[:9]]
    rows = [
        attempt("inpainting", f"b{b}", HARM if b == 0 and i % 2 else SAFE, i, goal_similarity=0.9 if i < on else 0.1)
        for b, on in enumerate(draws)
        for i in range(8)
    ]
    metrics = judged({"base": rows}, config)
    block = metrics.models["base"].attacks["inpainting"]
    assert (block.asr, block.curve[-1].asr, block.budget.queries[-1].asr) == (0.1, 0.1, 0.1)
    [figure] = attempts_figures(metrics)
    assert figure.title == "In-painted prompts, attempts: base 5% with 1, 10% with 8"
    assert "of all with a judged attempt" in figure.caption
    # An older file's point of one behavior alone is not drawn as if it were of all.
    curve = [*block.curve[:2], block.curve[-1].model_copy(update={"asr": 1.0, "n_behaviors": 1})]
    model = metrics.models["base"].model_copy(update={"attacks": {"inpainting": block.model_copy(update={"curve": curve})}})
    [figure] = attempts_figures(metrics.model_copy(update={"models": {"base": model}}))
    assert figure.title == f"In-painted prompts, attempts: base 5% with 1, {100 * (curve[1].asr or 0):.0f}% with 2"
    assert curve[1].asr == pytest.approx((1 - 4 * 3 / (8 * 7)) / 10)
