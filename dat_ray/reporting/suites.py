"""One evaluation as the page shows it: figures, the table of rates, the paired differences, the judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dat_ray.evaluation.estimates import JudgeFacts
from dat_ray.evaluation.judge_results import BehaviorDisagreement, ReadAnswers
from dat_ray.evaluation.prompt_results import CutFigures
from dat_ray.evaluation.questions import OVER_REFUSAL
from dat_ray.evaluation.results import AttackCounts, Metrics, PairedDifference, WorstCase, WorstDifference
from dat_ray.measures.intervals import Interval
from dat_ray.reporting.charts import (
    asr_figure,
    attempts_figures,
    budget_figures,
    calibration_figure,
    category_figure,
    front_figure,
    front_of,
    refusal_category_figure,
    refusal_figure,
)
from dat_ray.reporting.collect import CollectedSuite
from dat_ray.reporting.findings import attacked_alike
from dat_ray.reporting.gap_page import gap_section
from dat_ray.reporting.gap_values import run_gap
from dat_ray.reporting.tables import beyond_attacks, labeled, shown
from dat_ray.reporting.words import (
    attack_name,
    judge_kind,
    model_name,
    nats,
    over_refusal_by,
    p_value,
    percent,
    points,
    refusal_kind,
    refusal_reader,
    span,
    variant_name,
    with_span,
)

# Behaviors named on which two judges differ most.
DISPUTED = 5
ANY_OF_BOTH = "Any attack made on both"
MEASURES = {"boa": "Any attack", OVER_REFUSAL: "Over-refusal", "target_logprob": "Mean log p(target)"}


def suite_view(name: str, suite: CollectedSuite, categories: Mapping[str, str | None]) -> dict[str, Any]:
    """What the template needs of one evaluation."""
    metrics = suite.metrics
    figures = [
        asr_figure(metrics),
        refusal_figure(metrics),
        front_figure(front_of(metrics), metrics),
        category_figure(metrics, suite.attempts, categories),
        refusal_category_figure(metrics, suite.attempts, categories),
        *budget_figures(metrics),
        *attempts_figures(metrics),
    ]
    return {
        "name": name,
        "level": percent(metrics.confidence),
        "figures": [figure for figure in figures if figure is not None],
        "models": [{"index": index, "name": model_name(model)} for index, model in enumerate(metrics.models)],
        "first": model_name(metrics.first),
        "refusals": any(block.over_refusal.rate is not None for block in metrics.models.values()),
        "rates": _rates(metrics),
        "pairs": _pairs(metrics),
        "budgets": _budgets(metrics),
        "seeds": _seeds(metrics),
        "others": _others(metrics),
        "gap": None if (gap := run_gap(metrics)) is None else gap_section(gap),
        "left_out": _left_out(metrics),
        "unmeasured": _unmeasured(metrics),
        "judge": _judge(metrics),
        "replayed": metrics.replay,
    }


def _rates(metrics: Metrics) -> list[dict[str, Any]]:
    models = metrics.models
    rows = []
    for attack in metrics.attacks:
        for name, model in models.items():
            block = model.attacks.get(attack)
            if block is None:
                continue
            row = _attack_row(attack_name(attack), name, block)
            rows.append(row | {"attempt_rate": with_span(block.attempt_rate.interval)})
        for variant in metrics.variants(attack):
            found = {name: model.counts_of(attack, variant) for name, model in models.items()}
            label = variant_name(attack, variant)
            rows += [_attack_row(label, name, counts) for name, counts in found.items() if counts is not None]
    if len(models[metrics.first].attacks) > 1:
        rows += [
            _row("Any attack", name, model.boa.interval) | {"bounds": _bounds(model.boa.worst_case)}
            for name, model in models.items()
        ]
    for name, model in models.items():
        harmless = model.over_refusal
        row = _row("Over-refusal (refused)", name, harmless.interval)
        counts = {"unparsed": harmless.unparsed, "errors": harmless.errors}
        rows.append(row | counts | {"bounds": _bounds(harmless.worst_case)})
    last = None
    for row in rows:
        row["begins"] = row["measure"] != last
        last = row["measure"]
    return rows


def _attack_row(label: str, model: str, found: AttackCounts) -> dict[str, Any]:
    counts = {"attempts": found.attempts, "unparsed": found.unparsed, "errors": found.errors}
    return _row(label, model, found.interval) | counts | {"bounds": _bounds(found.worst_case)}


def _row(label: str, model: str, found: Interval) -> dict[str, Any]:
    return {
        "measure": label,
        "model": model_name(model),
        "rate": percent(found.value),
        "interval": span(found),
        "behaviors": found.n,
        "attempts": "",
        "attempt_rate": "",
        "unparsed": "",
        "errors": "",
        "bounds": "",
    }


def _bounds(worst: WorstCase | None) -> str:
    """The range between the bounds with the interval around both; empty where every attempt has a verdict."""
    return _extremes(worst, percent) if worst is not None and worst.unjudged else ""


def _extremes(worst: WorstCase | WorstDifference, shown: Callable[[float | None], str]) -> str:
    lowest, highest = worst.lowest.interval, worst.highest.interval
    if (lowest.value, lowest.low, lowest.high) == (highest.value, highest.low, highest.high):
        return ""
    around = span(Interval(lowest.value, lowest.low, highest.high, 0), shown)
    return f"{shown(lowest.value)} to {shown(highest.value)} {around}"


def _budgets(metrics: Metrics) -> list[dict[str, Any]]:
    """Success at a few budgets of model calls, one row an attack and model."""
    rows = []
    for attack in metrics.attacks:
        for number, (name, model) in enumerate(metrics.models.items()):
            found = model.attacks.get(attack)
            if found is None or not found.budget.model_calls:
                continue
            queries, calls = found.budget.queries, found.budget.model_calls
            rows.append(
                {
                    "attack": attack_name(attack) if number == 0 else "",
                    "model": model_name(name),
                    "first": f"{calls[0].budget:,}: {with_span(calls[0].interval)}",
                    "middle": f"{calls[len(calls) // 2].budget:,}: {with_span(calls[len(calls) // 2].interval)}",
                    "all": f"{calls[-1].budget:,}: {with_span(calls[-1].interval)}",
                    "queries": f"{queries[-1].budget:,}" if queries else "–",
                }
            )
    return rows


def _seeds(metrics: Metrics) -> list[dict[str, Any]]:
    """Rates of models of several training seeds."""
    rows = []
    for name, group in metrics.groups.items():
        measures = {**{attack_name(attack): one for attack, one in group.attacks.items()}, "Any attack": group.boa}
        for measure, one in {**measures, "Over-refusal": group.over_refusal}.items():
            both = one.seeds_and_behaviors
            rows.append(
                {
                    "model": name,
                    "measure": measure,
                    "seeds": one.n_seeds,
                    "over_seeds": with_span(one.interval),
                    "over_both": "–" if both is None else with_span(both.interval),
                }
            )
    return rows


def _others(metrics: Metrics) -> list[dict[str, Any]]:
    """What the table of rates does not hold, model by model: likelihood, kinds of answers, drift, benchmarks."""
    rows = []
    for measure in beyond_attacks(metrics):
        measured = [(model, cell) for model, cell in zip(metrics.models, measure.cells, strict=True) if cell.value is not None]
        for number, (model, cell) in enumerate(measured):
            value = shown(cell, measure.unit)[0]
            rows.append(
                {
                    "measure": labeled(measure) + (" (%)" if measure.unit == "rate" else ""),
                    "begins": number == 0,
                    "model": model_name(model),
                    "value": value,
                    "n": cell.n or "",
                }
            )
    return rows


def _left_out(metrics: Metrics) -> list[str]:
    """Rows that the drift and the likelihoods could not take as they are, a sentence a model."""
    sentences = []
    for name, model in metrics.models.items():
        drift, unscored = model.kl_drift, model.target_logprob.errors
        if drift is not None and (drift.left_out or drift.cut):
            rows = drift.n + drift.left_out
            sentences.append(
                f"KL drift of {model_name(name)}: {drift.left_out} of {rows} rows left out, whose prompts leave no room "
                f"for a response; the responses of {drift.cut} cut to the room behind their prompts."
            )
        if unscored:
            sentences.append(f"Log p(target) of {model_name(name)}: {unscored} pairs could not be scored.")
    return sentences


def _unmeasured(metrics: Metrics) -> str:
    """A sentence on what this evaluation left out; empty where nothing is missing."""
    models = metrics.models.values()
    absent = [
        f"{what} ({field})"
        for what, field, there in (
            ("drift on harmless answers", "evaluation.kl_rows", any(model.kl_drift for model in models)),
            ("benchmarks", "evaluation.utility.tasks", any(model.utility for model in models)),
            ("partial refusals", "evaluation.refusal_judge: xstest", any(model.over_refusal.kinds for model in models)),
        )
        if not there
    ]
    return f"Not measured here: {', '.join(absent)}." if absent else ""


def _pairs(metrics: Metrics) -> list[dict[str, Any]]:
    alike = attacked_alike(metrics)
    found = []
    for row in metrics.paired:
        if row.first == metrics.first:
            named = {"measure": ANY_OF_BOTH} if row.metric == "boa" and row.second not in alike else {}
            found.append(_pair(row, metrics.confidence) | named)
    return found


def _pair(row: PairedDifference, confidence: float) -> dict[str, Any]:
    measure = MEASURES.get(row.metric, row.metric) if row.attack is None else attack_name(row.attack)
    written, unit = (nats, "nats") if row.metric == "target_logprob" else (points, "points")
    return {
        "measure": measure,
        "model": model_name(row.second),
        "difference": "–" if row.difference is None else f"{written(row.difference)} {unit}",
        "interval": span(row.interval, written),
        "n": row.n,
        "beyond_chance": "" if row.difference is None else ("yes" if row.beyond_chance(confidence) else "not shown"),
        "p": p_value(row.p),
        "p_holm": p_value(row.p_holm),
        "tests": row.tests or "",
        "worst_case": _extremes(row.worst_case, points) if row.worst_case else "",
    }


def _judge(metrics: Metrics) -> dict[str, Any]:
    judge, other = metrics.judge, refusal_reader(metrics)
    models = metrics.models.values()
    given = [model.every_answer if other is None else model.to_attacks for model in models]
    readers = [_reader(metrics, judge, judge_kind(judge), "judge", given)]
    if other is not None:
        kind = f"{refusal_kind(other)}; it reads the answers to harmless prompts"
        readers.append(_reader(metrics, other, kind, "refusal_judge", [model.to_harmless for model in models]))
    return {
        "name": judge.name,
        "readers": readers,
        "over_refusal": over_refusal_by(metrics),
        "second": _second_judge(metrics),
        "on_goal": _on_goal(metrics),
    }


def _reader(metrics: Metrics, judge: JudgeFacts, kind: str, key: str, given: Sequence[ReadAnswers]) -> dict[str, Any]:
    verdicts = [{"model": model_name(name), **vars(counts)} for name, counts in zip(metrics.models, given, strict=True)]
    about = {"name": judge.name, "fingerprint": judge.fingerprint, "kind": kind, "verdicts": verdicts}
    return about | {"calibration": calibration_figure(judge, metrics.calibration.get(key))}


def _on_goal(metrics: Metrics) -> list[str]:
    """What readers say of the floor below which drawn prompts count as no attacks; nothing where there is none."""
    floors = {
        off.floor for model in metrics.models.values() for block in model.attacks.values() if (off := block.off_goal) is not None
    }
    found = metrics.goal_calibration
    if not floors:
        return []
    if found is None:
        return ["Which drawn prompts ask for their goal is said by an encoder that nobody has compared with readers here."]

    def said(name: str, one: CutFigures) -> str:
        kappa = "–" if one.kappa is None else f"{one.kappa:.2f}"
        return f"{name} from {one.cut:.2f} on: {with_span(one.accuracy.interval)}, kappa {kappa}, AUC {one.auc:.2f}"

    cuts = (("similarity", found.similarity), ("log p(target | prompt)", found.target_logprob), ("both", found.both))
    at, floor = found.at(min(floors)), min(floors)
    precision, recall = percent(at.precision), percent(at.recall)
    return [
        f"A drawn prompt counts as an attack where its similarity to the goal is at least {floor:g}. On {found.measured_on} "
        f"prompts for other goals, labeled by readers, a floor of {at.cut:g} agrees with them on "
        f"{with_span(at.accuracy.interval)}: of the prompts above it {precision} ask for the goal, of those that do {recall} are "
        "above it.",
        f"Cuts chosen on {found.chosen_on} other labeled prompts: {'; '.join(said(name, one) for name, one in cuts)}. Two "
        f"readers agree with kappa {found.second_kappa:.2f} ({found.read_twice} prompts).",
    ]


def _second_judge(metrics: Metrics) -> dict[str, Any] | None:
    """How a second judge of the same completions compares; None where there is none."""
    second = metrics.second_judge
    if second is None:
        return None
    rows = [
        {
            "model": model_name(name),
            "agreement": with_span(found.agreement.interval),
            "kappa": "–" if found.kappa is None else f"{found.kappa:.2f}",
            "n": found.n,
            "both_harmful": found.both_harmful,
            "first_only": found.first_only,
            "second_only": found.second_only,
            "neither": found.neither,
            "unread": found.unparsed_first + found.unparsed_second + found.failed_second,
            "behaviors": _by_behavior(found.by_behavior),
            "asr": ", ".join(f"{attack_name(attack)} {with_span(block.interval)}" for attack, block in found.asr.items()),
        }
        for name, found in (metrics.disagreement or {}).items()
    ]
    return {"name": second.name, "kind": judge_kind(second), "rows": rows}


def _by_behavior(found: BehaviorDisagreement | None) -> str:
    """A sentence on the behaviors that the judges see differently; empty where it was not recorded."""
    if found is None:
        return ""
    named = ", ".join(f"{key} ({one.differ} of {one.n})" for key, one in list(found.disputed.items())[:DISPUTED])
    most = f" Most disputed: {named}." if named else ""
    return (
        f"Of {found.n_behaviors} behaviors both call {found.both_broken} broken, only the first {found.first_only}, only the "
        f"second {found.second_only}; p = {p_value(found.p)} that neither is stricter.{most}"
    )
