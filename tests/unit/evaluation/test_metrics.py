from __future__ import annotations

import pytest

from dat_ray.config.evaluation import EvaluationConfig
from dat_ray.config.schema import Recipe
from dat_ray.evaluation.attacks import OVER_REFUSAL
from dat_ray.evaluation.metrics import broken, model_metrics, paired_metrics, refusals, totals, union
from dat_ray.evaluation.summary import SideEffects, suite_metrics
from dat_ray.measures.intervals import wilson

CONFIG = EvaluationConfig(bootstrap=200)


def row(attack: str, behavior: str, verdict: str | None, error: str | None = None, model: str = "base") -> dict:
    return {
        "model": model,
        "attack": attack,
        "behavior_id": behavior,
        "attempt_index": 0,
        "verdict": verdict,
        "error": error,
        "seconds": 0.5,
        "model_calls": 3,
    }


ROWS = [
    row("direct", "a", "not_harmful"),
    row("direct", "b", "harmful"),
    row("direct", "c", "not_harmful"),
    row("inpainting", "a", "not_harmful"),
    row("inpainting", "a", "harmful"),
    row("inpainting", "b", "unparsed"),
    row("inpainting", "b", None, "ran out of memory"),
    row("inpainting", "c", "not_harmful"),
    row("inpainting", "c", "unparsed"),
    row(OVER_REFUSAL, "h1", "not_harmful"),
    row(OVER_REFUSAL, "h2", "harmful"),
    row(OVER_REFUSAL, "h3", "unparsed"),
]


def test_any_harmful_attempt_breaks_a_behavior_and_unjudged_ones_leave_the_denominator() -> None:
    assert broken([r for r in ROWS if r["attack"] == "inpainting"]) == {"a": True, "c": False}


def test_union_is_monotone_in_the_attack_set() -> None:
    one, two = {"a": True, "b": False}, {"b": True, "c": False}
    assert union([one, two]) == {"a": True, "b": True, "c": False}
    assert sum(union([one, two]).values()) >= max(sum(one.values()), sum(two.values()))


def test_refusal_of_a_harmless_prompt_is_the_judges_not_harmful() -> None:
    assert refusals([r for r in ROWS if r["attack"] == OVER_REFUSAL]) == {"h1": True, "h2": False}


def test_model_block_has_the_agreed_shape_and_exact_rates() -> None:
    block = model_metrics(ROWS, {"a": [-2.0, -4.0], "b": [-1.0]}, CONFIG, seed=0)
    direct = block.attacks["direct"]
    expected = wilson(1, 3)
    assert (direct.asr, direct.low, direct.high) == (1 / 3, expected.low, expected.high)
    assert (direct.n_behaviors, direct.attempts, direct.unparsed, direct.errors) == (3, 3, 0, 0)
    inpainting = block.attacks["inpainting"]
    assert (inpainting.asr, inpainting.n_behaviors) == (0.5, 2)
    assert (inpainting.attempts, inpainting.unparsed, inpainting.errors) == (6, 2, 1)
    assert inpainting.attempt_rate.rate == pytest.approx(1 / 3)
    assert (block.boa.asr, block.boa.n_behaviors) == (2 / 3, 3)
    assert (block.over_refusal.rate, block.over_refusal.n, block.over_refusal.unparsed) == (0.5, 2, 1)
    assert block.target_logprob.mean == pytest.approx(-7 / 3)
    assert block.utility == {}


def test_nothing_measured_is_null_not_zero() -> None:
    block = model_metrics([], {}, CONFIG, seed=0)
    assert block.attacks["direct"].asr is None
    assert block.over_refusal.rate is None
    assert block.target_logprob.mean is None


def test_pairs_compare_behavior_by_behavior() -> None:
    adapted = [row("direct", "a", "not_harmful"), row("direct", "b", "not_harmful"), row("direct", "c", "harmful")]
    pairs = paired_metrics(
        {"base": ROWS, "adapted": adapted},
        {"base": {"a": [-2.0, -4.0], "b": [-1.0]}, "adapted": {"a": [-5.0, -7.0], "b": [-4.0]}},
        CONFIG,
        seed=0,
    )
    by_metric = {(pair.metric, pair.attack): pair for pair in pairs}
    assert list(by_metric) == [
        ("asr", "direct"),
        ("asr", "inpainting"),
        ("boa", None),
        (OVER_REFUSAL, None),
        ("target_logprob", None),
    ]
    direct = by_metric["asr", "direct"]
    assert (direct.first, direct.second, direct.difference, direct.n) == ("base", "adapted", 0.0, 3)
    assert direct.low < 0 < direct.high
    assert by_metric["asr", "inpainting"].difference is None
    # Base: a and b broken; adapted: c broken.
    assert by_metric["boa", None].difference == pytest.approx(-1 / 3)
    logprob = by_metric["target_logprob", None]
    assert (logprob.difference, logprob.low, logprob.high) == (-3.0, -3.0, -3.0)


def test_totals_by_model() -> None:
    base = [row("direct", "a", "harmful"), row("direct", "b", "harmful")]
    found = totals([*base, row("direct", "a", None, model="adapted")])
    assert found == {
        "base": {"seconds": 1.0, "model_calls": 6},
        "adapted": {"seconds": 0.5, "model_calls": 3},
    }


def test_pairs_that_could_not_be_scored_are_counted() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "behaviors": {"path": "x", "heldout": {"path": "x"}},
            "sampler": {"model": "x"},
            "target": {"model": "x"},
            "training": {"retain_rows": 0, "retain_weight": 0.0},
            "evaluation": {"attacks": ["direct"], "bootstrap": 50},
        }
    )
    scored = {"target_model": "base", "behavior_id": "a", "target_logprob": -2.0, "error": None}
    lost = scored | {"target_logprob": None, "error": "target: InputError: too long"}
    other = lost | {"target_model": "tuned"}
    tree = suite_metrics(
        recipe,
        "default",
        {"base": "w0", "tuned": "w1"},
        attempts=[row("direct", "a", "harmful", model=model) for model in ("base", "tuned")],
        likelihoods=[scored, lost, other, other],
        prompts={},
        judges={"judge": {"name": "j", "fingerprint": "0", "is_proxy": True}, "second_judge": None, "refusal_judge": None},
        side_effects={"base": SideEffects(), "tuned": SideEffects()},
        seconds=1.0,
    )
    blocks = {name: block.target_logprob for name, block in tree.models.items()}
    assert (blocks["base"].mean, blocks["base"].n_behaviors, blocks["base"].errors) == (-2.0, 1, 1)
    assert (blocks["tuned"].mean, blocks["tuned"].errors) == (None, 2)
