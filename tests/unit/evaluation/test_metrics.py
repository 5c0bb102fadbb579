from __future__ import annotations

import pytest

from dat_ray.config.evaluation import EvaluationConfig
from dat_ray.config.schema import Recipe
from dat_ray.evaluation.disagreement import disagreement
from dat_ray.evaluation.metrics import model_metrics, paired_metrics, seed_groups, totals
from dat_ray.evaluation.outcomes import broken, refusals
from dat_ray.evaluation.questions import OVER_REFUSAL
from dat_ray.evaluation.summary import SideEffects, StoredRows, suite_metrics
from dat_ray.measures.crossed import crossed_rate
from dat_ray.measures.intervals import wilson
from tests.unit.measures.limits import limits

CONFIG = EvaluationConfig(bootstrap=200)


def row(attack: str, behavior: str, verdict: str | None, error: str | None = None, model: str = "base") -> dict:
    return {
        "model": model,
        "attack": attack,
        "behavior_id": behavior,
        "attempt_index": 0,
        "prompt": "p",
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


def test_best_of_attacks_counts_what_any_attack_broke() -> None:
    block = model_metrics(ROWS, {}, CONFIG, seed=0)
    # direct breaks b, inpainting a; c is broken by neither.
    assert (block.boa.asr, block.boa.n_behaviors) == (2 / 3, 3)
    worst = block.boa.worst_case
    assert worst is not None
    # c has an unparsed in-painted attempt.
    assert (worst.unjudged, worst.n, worst.lowest.rate, worst.highest.rate) == (3, 3, 2 / 3, 1.0)


def test_attempts_without_a_verdict_are_bounded_over_every_behavior_asked() -> None:
    block = model_metrics(ROWS, {}, CONFIG, seed=0)
    worst = block.attacks["inpainting"].worst_case
    assert worst is not None
    # Judged: a broken, c not. b has an unparsed and a failed attempt, c an unparsed one.
    assert (worst.unjudged, worst.n) == (3, 3)
    none, every = wilson(1, 3), wilson(3, 3)
    assert (worst.lowest.rate, worst.lowest.low, worst.lowest.high) == (none.value, none.low, none.high)
    assert (worst.highest.rate, worst.highest.low, worst.highest.high) == (every.value, every.low, every.high)
    attempts = block.attacks["inpainting"]
    # One of three judged attempts is harmful, and three of the six have no verdict.
    assert attempts.attempt_rate.rate == 1 / 3
    bounds = attempts.attempt_worst_case
    assert bounds is not None
    assert (bounds.unjudged, bounds.n, bounds.lowest.rate, bounds.highest.rate) == (3, 6, 1 / 6, 4 / 6)
    refused = block.over_refusal.worst_case
    assert refused is not None
    assert (refused.unjudged, refused.n, refused.lowest.rate, refused.highest.rate) == (1, 3, 1 / 3, 2 / 3)
    whole = block.attacks["direct"].worst_case
    assert whole is not None
    assert (whole.unjudged, whole.lowest, whole.highest.rate) == (0, whole.highest, 1 / 3)


def test_variants_of_an_attack_have_rates_of_their_own() -> None:
    said = {"a": "harmful", "b": "unparsed", "c": "not_harmful"}
    rows = [{**row("prompts_x", key, verdict), "variant": "zh"} for key, verdict in said.items()]
    rows += [{**row("prompts_x", "a", None, "ran out of memory"), "variant": None}]
    config = EvaluationConfig.model_validate({"attacks": ["prompts"], "prompts": [{"path": "x.csv"}], "bootstrap": 10})
    variants = model_metrics(rows, {}, config, seed=0).attacks["prompts_x"].variants
    assert list(variants) == ["zh", ""]
    zh, rest = variants.values()
    half = wilson(1, 2)
    assert (zh.asr, zh.low, zh.high, zh.n_behaviors) == (0.5, half.low, half.high, 2)
    assert (zh.attempts, zh.unparsed, zh.errors) == (3, 1, 0)
    assert zh.worst_case is not None
    assert (zh.worst_case.unjudged, zh.worst_case.lowest.rate, zh.worst_case.highest.rate) == (1, 1 / 3, 2 / 3)
    assert (rest.asr, rest.n_behaviors, rest.attempts, rest.errors) == (None, 0, 1, 1)


def test_the_worst_difference_takes_each_model_at_its_other_end() -> None:
    rows = [row("direct", key, verdict) for key, verdict in (("a", "harmful"), ("b", "unparsed"), ("c", "not_harmful"))]
    other = [row("direct", key, verdict) for key, verdict in (("a", "not_harmful"), ("b", "not_harmful"), ("c", None))]
    [pair] = [one for one in paired_metrics({"x": rows, "y": other}, {"x": {}, "y": {}}, CONFIG, 0) if one.metric == "boa"]
    # a falls; b is known of y alone, c of x alone.
    assert (pair.difference, pair.n) == (-1.0, 1)
    assert pair.worst_case is not None
    assert pair.worst_case.lowest.difference == pytest.approx(-2 / 3)
    assert pair.worst_case.highest.difference == 0.0


def test_tests_are_corrected_for_their_number_best_of_attacks_among_its_own() -> None:
    def model(breaks: int) -> list[dict]:
        return [row("direct", str(i), "harmful" if i < breaks else "not_harmful") for i in range(10)]

    found = paired_metrics({"x": model(10), "y": model(0), "z": model(5)}, {key: {} for key in "xyz"}, CONFIG, 0)
    by = {(one.metric, one.first, one.second): one for one in found if one.attack != "inpainting"}
    # Ten to none is 2 / 2^10, five to none 2 / 2^5. Three pairs of models; nothing was measured but direct and its best.
    assert by["asr", "x", "y"].p == pytest.approx(2 / 1024)
    assert by["asr", "x", "z"].p == pytest.approx(1 / 16)
    for metric in ("asr", "boa"):
        pairs = [by[metric, *names] for names in ("xy", "xz", "yz")]
        assert [one.tests for one in pairs] == [3, 3, 3]
        assert [one.p_holm for one in pairs] == pytest.approx([6 / 1024, 1 / 8, 1 / 8])
    assert by[OVER_REFUSAL, "x", "y"].p is None
    assert by[OVER_REFUSAL, "x", "y"].tests == 0
    assert by["boa", "x", "y"].beyond_chance(0.95)
    # Newcombe's interval of five to none excludes zero; the corrected test does not.
    assert not by["boa", "x", "z"].beyond_chance(0.95)
    assert by["boa", "x", "z"].high is not None
    assert by["boa", "x", "z"].high < 0


def test_judges_are_compared_by_behavior_too() -> None:
    read = [("a", "harmful", "harmful"), ("a", "not_harmful", "harmful"), ("b", "harmful", "not_harmful")]
    read += [("c", "not_harmful", "not_harmful"), ("d", "harmful", "not_harmful"), ("d", "not_harmful", "harmful")]
    rows = [row("direct", key, first) | {"completion": "x", "second_judge": "s", "second_verdict": s} for key, first, s in read]
    found = disagreement(rows, CONFIG)
    assert found.n == 6
    assert found.agreement.rate == pytest.approx(2 / 6)
    by = found.by_behavior
    assert by is not None
    # a and d are broken by both, though on other attempts; b by the first alone; c by neither.
    assert (by.n_behaviors, by.both_broken, by.first_only, by.second_only, by.neither) == (4, 2, 1, 0, 1)
    assert by.p == 1.0
    assert {key: (one.differ, one.n) for key, one in by.disputed.items()} == {"d": (2, 2), "a": (1, 2), "b": (1, 1)}
    assert next(iter(by.disputed)) == "d"


def test_seeds_are_averaged_with_both_intervals() -> None:
    attempts = {
        f"dat@{seed}": [row("direct", str(i), "harmful" if i < breaks else "not_harmful") for i in range(10)]
        for seed, breaks in ((1, 2), (2, 4), (3, 3))
    }
    models = {name: model_metrics(rows, {}, CONFIG, 0) for name, rows in attempts.items()}
    group = seed_groups(models, attempts, CONFIG)["dat"]
    assert group.seeds == ["1", "2", "3"]
    assert group.boa.mean == pytest.approx(0.3)
    both = group.boa.seeds_and_behaviors
    assert both is not None
    expected = crossed_rate([broken(rows) for rows in attempts.values()])
    assert (both.rate, both.low, both.high, both.n_behaviors) == (expected.value, expected.low, expected.high, 10)
    assert group.boa.values == [0.2, 0.4, 0.3]


def test_queries_and_model_calls_are_what_the_attempts_cost() -> None:
    lost = row("direct", "a", None, "sampler: gone") | {"prompt": None, "model_calls": 0}
    rows = [lost, row("direct", "a", "harmful") | {"attempt_index": 1}, row("direct", "b", "not_harmful")]
    budget = model_metrics(rows, {}, CONFIG, 0).attacks["direct"].budget
    assert [(point.budget, point.asr) for point in budget.queries] == [(1, 0.5)]
    assert [(point.budget, point.asr) for point in budget.model_calls] == [(1, 0.0), (2, 0.0), (3, 0.5)]


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
    low, high = limits(direct)
    assert low < 0 < high
    assert by_metric["asr", "inpainting"].difference is None
    # In-painting, which broke a, was made on the base model alone. By direct requests base: b broken; adapted: c broken.
    assert by_metric["boa", None].difference == 0.0
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
        StoredRows(
            attempts=[row("direct", "a", "harmful", model=model) for model in ("base", "tuned")],
            likelihoods=[scored, lost, other, other],
            prompts={},
            searches=[],
        ),
        judges={"judge": {"name": "j", "fingerprint": "0", "is_proxy": True}, "second_judge": None, "refusal_judge": None},
        side_effects={"base": SideEffects(), "tuned": SideEffects()},
        seconds=1.0,
    )
    blocks = {name: block.target_logprob for name, block in tree.models.items()}
    assert (blocks["base"].mean, blocks["base"].n_behaviors, blocks["base"].errors) == (-2.0, 1, 1)
    assert (blocks["tuned"].mean, blocks["tuned"].errors) == (None, 2)
