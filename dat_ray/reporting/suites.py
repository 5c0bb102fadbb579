"""One evaluation as the page shows it: figures, the table of rates, the paired differences, the judge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dat_ray.evaluation.attacks import OVER_REFUSAL
from dat_ray.evaluation.results import Metrics, PairedDifference
from dat_ray.measures.intervals import Interval
from dat_ray.reporting.charts import (
    asr_figure,
    attempts_figures,
    calibration_figure,
    category_figure,
    front_figure,
    front_of,
    refusal_category_figure,
    refusal_figure,
)
from dat_ray.reporting.collect import Suite
from dat_ray.reporting.tables import comparison, labelled, shown
from dat_ray.reporting.words import attack_name, judge_kind, model_name, nats, percent, points, span, with_span

MEASURES = {"boa": "Any attack", OVER_REFUSAL: "Over-refusal", "target_logprob": "Mean log p(target)"}


def suite_view(name: str, suite: Suite, categories: Mapping[str, str | None]) -> dict[str, Any]:
    """What the template needs of one evaluation."""
    metrics = suite.metrics
    figures = [
        asr_figure(metrics),
        refusal_figure(metrics),
        front_figure(front_of(metrics), metrics.judge, metrics.confidence),
        category_figure(metrics, suite.attempts, categories),
        refusal_category_figure(metrics, suite.attempts, categories),
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
        "pairs": [_pair(row) for row in metrics.paired if row.first == metrics.first],
        "others": _others(metrics),
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
            rows.append(
                _row(attack_name(attack), name, block.interval)
                | {"attempts": block.attempts, "attempt_rate": with_span(block.attempt_rate.interval)}
                | {"unparsed": block.unparsed, "errors": block.errors}
            )
    if len(models[metrics.first].attacks) > 1:
        rows += [_row("Any attack", name, model.boa.interval) for name, model in models.items()]
    for name, model in models.items():
        harmless = model.over_refusal
        row = _row("Over-refusal (refused)", name, harmless.interval)
        rows.append(row | {"unparsed": harmless.unparsed, "errors": harmless.errors})
    last = None
    for row in rows:
        row["begins"] = row["measure"] != last
        last = row["measure"]
    return rows


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
    }


def _others(metrics: Metrics) -> list[dict[str, Any]]:
    """What the table of rates does not hold, model by model: likelihood, kinds of answers, drift, benchmarks."""
    table, rows = comparison(metrics), []
    for measure in table.measures:
        if measure.key in {*metrics.attacks, "boa", OVER_REFUSAL}:
            continue
        measured = [(model, cell) for model, cell in zip(table.models, measure.cells, strict=True) if cell.value is not None]
        for number, (model, cell) in enumerate(measured):
            value = shown(cell, measure.unit)[0]
            rows.append(
                {
                    "measure": labelled(measure) + (" (%)" if measure.unit == "rate" else ""),
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
            ("drift on retain data", "evaluation.kl_rows", any(model.kl_drift for model in models)),
            ("benchmarks", "evaluation.utility.tasks", any(model.utility for model in models)),
            ("partial refusals", "evaluation.refusal_judge: xstest", any(model.over_refusal.kinds for model in models)),
        )
        if not there
    ]
    return f"Not measured here: {', '.join(absent)}." if absent else ""


def _pair(row: PairedDifference) -> dict[str, Any]:
    measure = MEASURES.get(row.metric, row.metric) if row.attack is None else attack_name(row.attack)
    written, unit = (nats, "nats") if row.metric == "target_logprob" else (points, "points")
    return {
        "measure": measure,
        "model": model_name(row.second),
        "difference": "–" if row.difference is None else f"{written(row.difference)} {unit}",
        "interval": span(row.interval, written),
        "n": row.n,
        "beyond_chance": "" if row.difference is None else ("yes" if row.beyond_chance else "not shown"),
    }


def _judge(metrics: Metrics) -> dict[str, Any]:
    judge = metrics.judge
    verdicts = []
    for name, model in metrics.models.items():
        counts = {"answers": model.answers, "unparsed": model.unparsed, "errors": model.errors}
        verdicts.append({"model": model_name(name), **counts})
    about = {"name": judge.name, "fingerprint": judge.fingerprint, "kind": judge_kind(judge), "verdicts": verdicts}
    return about | {
        "second": _second_judge(metrics),
        "calibration": calibration_figure(judge, metrics.calibration.get("judge")),
    }


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
            "asr": ", ".join(f"{attack_name(attack)} {with_span(block.interval)}" for attack, block in found.asr.items()),
        }
        for name, found in (metrics.disagreement or {}).items()
    ]
    return {"name": second.name, "kind": judge_kind(second), "rows": rows}
