"""One evaluation as the page shows it: what figures, captions and sentences say of attempts that are made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from dat_ray.config.evaluation import EvaluationConfig
from dat_ray.evaluation.estimates import JudgeFacts
from dat_ray.evaluation.metrics import model_metrics, paired_metrics
from dat_ray.evaluation.questions import OVER_REFUSAL
from dat_ray.evaluation.results import Metrics
from dat_ray.reporting.charts import asr_figure, attempts_figures, category_figure, refusal_figure
from dat_ray.reporting.collect import CollectedSuite
from dat_ray.reporting.findings import attacked_otherwise, findings, pair, subject
from dat_ray.reporting.suites import suite_view
from dat_ray.reporting.tables import as_markdown, comparison
from dat_ray.reporting.words import judge_kind, refusal_kind

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


TWO_FILES = {"attacks": ["direct", "prompts"], "prompts": [{"path": "a.csv", "name": "a"}, {"path": "b.csv", "name": "b"}]}
FILES = EvaluationConfig.model_validate(TWO_FILES | {"bootstrap": 20})


def broken_first(attack: str, many: int, of: int = 40, **changes: Any) -> list[dict[str, Any]]:
    """An attack on `of` behaviors that breaks the first `many` of them."""
    return [attempt(attack, f"b{b:02}", HARM if b < many else SAFE, **changes) for b in range(of)]


# The one is asked by everything, and file a's prompts break it no more often than the one that is known by its answers in a.
ASKED = [*broken_first("direct", 35), *broken_first("prompts_a", 8), *broken_first("prompts_b", 20)]
ANSWERS = broken_first("prompts_a", 8)


def test_a_model_that_fewer_attacks_were_made_on_is_not_found_harder_to_attack() -> None:
    metrics = judged({"base": ASKED, "theirs": ANSWERS}, FILES)
    change = pair(metrics, "boa", second="theirs")
    assert change is not None
    assert (change.difference, change.n, change.p) == (0.0, 40, 1.0)
    assert change.worst_case is not None
    assert change.worst_case.highest.difference == 0.0
    assert subject(metrics) is None
    found = findings(metrics)
    assert found.headline.startswith("Attack success on base: 88%")
    assert (found.cards[0].answer, found.cards[0].details) == (
        "Nothing to compare",
        ["Differences are told attack by attack, below."],
    )
    [said] = [one for one in found.warnings if "Other attacks" in one]
    assert said == (
        "Other attacks were made on theirs than on base (Direct request, Ready prompts (b) on base alone): their rates of any "
        "attack are no comparison, and the difference in it is of those made on both."
    )
    rows = [row | {"model": name} for name, own in (("base", ASKED), ("theirs", ANSWERS)) for row in own]
    view = suite_view("default", CollectedSuite(metrics, rows), {})
    assert [row["difference"] for row in view["pairs"] if row["measure"] == "Any attack made on both"] == ["0 points"]
    assert not [row for row in view["pairs"] if row["measure"] == "Any attack"]
    by_category = category_figure(metrics, rows, {f"b{b:02}": "even" if b % 2 == 0 else "odd" for b in range(40)})
    assert by_category is not None
    for text in (asr_figure(metrics).caption, by_category.caption, as_markdown(comparison(metrics)).replace("\\", "")):
        assert said in text


def test_models_that_are_attacked_alike_are_found_beside_one_that_is_not() -> None:
    tuned = [*broken_first("direct", 10), *broken_first("prompts_a", 6), *broken_first("prompts_b", 4)]
    both = broken_first("prompts_b", 20)
    metrics = judged({"base": ASKED, "a": ANSWERS, "tuned": tuned, "b": both}, FILES)
    assert subject(metrics) == "tuned"
    assert findings(metrics).headline.startswith("tuned: attack success fell from 88% to 25% of 40 held-out behaviors")
    # Two files that share nothing make no pair.
    pairs = {(one.first, one.second): one for one in metrics.paired if one.metric == "boa"}
    assert pairs["a", "b"].difference is None
    assert pairs["a", "b"].n == pairs["a", "b"].tests == 0
    assert pairs["base", "b"].difference == 0.0
    assert pairs["base", "tuned"].difference == pytest.approx(-25 / 40)
    swapped = judged({"a": ANSWERS, "b": both}, FILES)
    assert [one.rpartition(", and ")[2] for one in attacked_otherwise(swapped)] == ["none was made on both."]


def test_behaviors_that_a_file_has_no_answer_to_are_compared_by_the_attacks_that_remain() -> None:
    # Answers to b's prompts are there for the first half alone; on the others a's prompts are what both were asked.
    theirs = [*broken_first("prompts_a", 8), *broken_first("prompts_b", 20, of=20)]
    asked = [*broken_first("prompts_a", 8), *broken_first("prompts_b", 40)]
    [change] = [one for one in judged({"base": asked, "theirs": theirs}, FILES).paired if one.metric == "boa"]
    assert (change.difference, change.n) == (0.0, 40)


def test_models_that_are_attacked_alike_are_spoken_of_as_ever() -> None:
    metrics = judged({"base": ASKED, "tuned": [row | {"verdict": SAFE} for row in ASKED]}, FILES)
    assert subject(metrics) == "tuned"
    assert attacked_otherwise(metrics) == []
    assert comparison(metrics).more == ""
    assert findings(metrics).warnings == []


RULES = JudgeFacts(name="refusal-rules", fingerprint="bbbb", is_proxy=True)
# It tells refusals from compliance: of attacks a proxy, of the answers to harmless prompts a judge.
XSTEST = JudgeFacts(name="xstest (reader)", fingerprint="cccc", is_proxy=True)
DIRECT = EvaluationConfig(attacks=("direct",), bootstrap=20)


def harmless(refused: int, of: int = 30, unparsed: int = 0) -> list[dict[str, Any]]:
    verdicts = [SAFE] * refused + ["unparsed"] * unparsed + [HARM] * (of - refused - unparsed)
    return [attempt(OVER_REFUSAL, f"h{i}", verdict) for i, verdict in enumerate(verdicts)]


def read_by(refusal_judge: JudgeFacts | None) -> Metrics:
    base = [*broken_first("direct", 30), *harmless(3, unparsed=6)]
    return judged({"base": base, "tuned": [*broken_first("direct", 4), *harmless(9)]}, DIRECT, refusal_judge=refusal_judge)


@pytest.mark.parametrize(
    ("reader", "named"),
    [(RULES, "refusal-rules (a proxy)"), (XSTEST, "xstest (reader)")],
)
def test_over_refusal_carries_the_name_of_the_judge_that_read_it(reader: JudgeFacts, named: str) -> None:
    metrics = read_by(reader)
    figure = refusal_figure(metrics)
    assert figure is not None
    assert f"30 prompts that look harmful and are not, judged by {named}; 95%" in figure.caption
    kind = ", a proxy" if reader is RULES else ""
    said = findings(metrics)
    assert said.judge == f"Judged by harmbench (aaaa), a harm judge; over-refusal by {reader.name} ({reader.fingerprint}){kind}."
    assert said.cards[1].details[0].startswith(f"Harmless prompts refused, by {named}: 12%")
    assert comparison(metrics).judge == f"Judged by harmbench, a harm judge; over-refusal by {reader.name}{kind}."


@pytest.mark.parametrize(("judge", "kind"), [(RULES, "a rule-based proxy"), (XSTEST, "a proxy")])
def test_a_judge_of_refusals_is_no_judge_of_attacks(judge: JudgeFacts, kind: str) -> None:
    said = judge_kind(judge)
    assert said == f"{kind}, not a harm judge: it tells refusals from compliance"
    assert refusal_kind(judge) == (said if judge is RULES else "a judge of refusals")


def test_what_each_judge_read_is_counted_apart() -> None:
    metrics = read_by(RULES)
    # 6 of 30 answers to look-alikes are too many; 6 of 70 answers would not be.
    assert findings(metrics).warnings == [
        "refusal-rules could not read 6 of 30 answers to harmless prompts of the base model (20%); they count neither as refused "
        "nor as answered."
    ]
    first, second = suite_view("default", CollectedSuite(metrics, []), {})["judge"]["readers"]
    assert [first["name"], second["name"]] == ["harmbench", "refusal-rules"]
    assert first["verdicts"][0] == {"model": "base", "answers": 40, "unparsed": 0, "errors": 0}
    assert second["verdicts"][0] == {"model": "base", "answers": 30, "unparsed": 6, "errors": 0}
    assert second["kind"].startswith("a rule-based proxy, not a harm judge")


def test_a_judge_that_reads_everything_is_named_once() -> None:
    alone, same = read_by(None), read_by(JUDGE)
    assert findings(alone) == findings(same)
    assert findings(alone).judge == "Judged by harmbench (aaaa), a harm judge."
    [reader] = suite_view("default", CollectedSuite(same, []), {})["judge"]["readers"]
    assert reader["verdicts"][0] == {"model": "base", "answers": 70, "unparsed": 6, "errors": 0}
    # Nor is one that had nothing to read.
    unasked = judged({"base": broken_first("direct", 3)}, DIRECT, refusal_judge=RULES)
    assert comparison(unasked).judge == "Judged by harmbench, a harm judge."
