"""One evaluation as the page shows it: figures, the table of rates, the paired differences, the judge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dat_ray.evaluation.attacks import OVER_REFUSAL
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
from dat_ray.reporting.findings import first_model
from dat_ray.reporting.tables import comparison, labelled, shown
from dat_ray.reporting.words import Tree, attack_name, judge_kind, model_name, nats, percent, points, span

MEASURES = {"boa": "Any attack", OVER_REFUSAL: "Over-refusal", "target_logprob": "Mean log p(target)"}


def suite_view(name: str, suite: Suite, categories: Mapping[str, str | None]) -> dict[str, Any]:
    """What the template needs of one evaluation."""
    metrics = suite.metrics
    figures = [
        asr_figure(metrics),
        refusal_figure(metrics),
        front_figure(front_of(metrics), metrics["judge"], metrics["confidence"]),
        category_figure(metrics, suite.attempts, categories),
        refusal_category_figure(metrics, suite.attempts, categories),
        *attempts_figures(metrics),
    ]
    return {
        "name": name,
        "level": percent(metrics["confidence"]),
        "figures": [figure for figure in figures if figure is not None],
        "models": [{"index": index, "name": model_name(model)} for index, model in enumerate(metrics["models"])],
        "first": model_name(first_model(metrics)),
        "refusals": any(block["over_refusal"]["rate"] is not None for block in metrics["models"].values()),
        "rates": _rates(metrics),
        "pairs": [_pair(row, metrics) for row in metrics["paired"] if row["first"] == first_model(metrics)],
        "others": _others(metrics),
        "left_out": _left_out(metrics),
        "unmeasured": _unmeasured(metrics),
        "judge": _judge(metrics),
        "replayed": metrics.get("replay"),
    }


def _rates(metrics: Tree) -> list[dict[str, Any]]:
    models = metrics["models"]
    rows = []
    for attack in dict.fromkeys(attack for block in models.values() for attack in block["attacks"]):
        for name, tree in models.items():
            block = tree["attacks"].get(attack)
            if block is None:
                continue
            pooled = block["attempt_rate"]
            rows.append(
                _row(attack_name(attack), name, block, "asr")
                | {"attempts": block["attempts"], "attempt_rate": f"{percent(pooled['rate'])} {span(pooled)}"}
            )
    if len(next(iter(models.values()))["attacks"]) > 1:
        rows += [_row("Any attack", name, tree["boa"], "asr") for name, tree in models.items()]
    rows += [_row("Over-refusal (refused)", name, tree["over_refusal"], "rate") for name, tree in models.items()]
    last = None
    for row in rows:
        row["begins"] = row["measure"] != last
        last = row["measure"]
    return rows


def _row(label: str, model: str, block: Tree, key: str) -> dict[str, Any]:
    return {
        "measure": label,
        "model": model_name(model),
        "rate": percent(block[key]),
        "interval": span(block),
        "behaviors": block.get("n_behaviors", block.get("n")),
        "attempts": "",
        "attempt_rate": "",
        "unparsed": block.get("unparsed", ""),
        "errors": block.get("errors", ""),
    }


def _others(metrics: Tree) -> list[dict[str, Any]]:
    """What the table of rates does not hold, model by model: likelihood, kinds of answers, drift, benchmarks."""
    table, rows = comparison(metrics), []
    attacks = {attack for block in metrics["models"].values() for attack in block["attacks"]}
    for measure in table.measures:
        if measure.key in attacks | {"boa", OVER_REFUSAL}:
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


def _left_out(metrics: Tree) -> list[str]:
    """Rows that the drift and the likelihoods could not take as they are, a sentence a model."""
    sentences = []
    for name, block in metrics["models"].items():
        drift, unscored = block.get("kl_drift") or {}, block["target_logprob"].get("errors", 0)
        if drift.get("left_out") or drift.get("cut"):
            rows = drift["n"] + drift["left_out"]
            sentences.append(
                f"KL drift of {model_name(name)}: {drift['left_out']} of {rows} rows left out, whose prompts leave no room "
                f"for a response; the responses of {drift['cut']} cut to the room behind their prompts."
            )
        if unscored:
            sentences.append(f"Log p(target) of {model_name(name)}: {unscored} pairs could not be scored.")
    return sentences


def _unmeasured(metrics: Tree) -> str:
    """A sentence on what this evaluation left out; empty where nothing is missing."""
    blocks = metrics["models"].values()
    absent = [
        f"{what} ({field})"
        for what, field, there in (
            ("drift on retain data", "evaluation.kl_rows", any(block.get("kl_drift") for block in blocks)),
            ("benchmarks", "evaluation.utility.tasks", any(block.get("utility") for block in blocks)),
            (
                "partial refusals",
                "evaluation.refusal_judge: xstest",
                any(block["over_refusal"].get("kinds") for block in blocks),
            ),
        )
        if not there
    ]
    return f"Not measured here: {', '.join(absent)}." if absent else ""


def _pair(row: Tree, metrics: Tree) -> dict[str, Any]:
    measure = attack_name(row["attack"]) if row["metric"] == "asr" else MEASURES.get(row["metric"], row["metric"])
    written, unit = (nats, "nats") if row["metric"] == "target_logprob" else (points, "points")
    difference = "–" if row["difference"] is None else f"{written(row['difference'])} {unit}"
    sure = row["low"] is not None and (row["low"] > 0 or row["high"] < 0)
    return {
        "measure": measure,
        "model": model_name(row["second"]),
        "difference": difference,
        "interval": span(row, written),
        "n": row["n"],
        "beyond_chance": "" if row["difference"] is None else ("yes" if sure else "not shown"),
    }


def _judge(metrics: Tree) -> dict[str, Any]:
    judge = metrics["judge"]
    verdicts = []
    for name, block in metrics["models"].items():
        parts = [*block["attacks"].values(), block["over_refusal"]]
        verdicts.append(
            {
                "model": model_name(name),
                "answers": sum(one["attempts"] for one in block["attacks"].values())
                + block["over_refusal"]["n"]
                + block["over_refusal"]["unparsed"],
                "unparsed": sum(one["unparsed"] for one in parts),
                "errors": sum(one["errors"] for one in parts),
            }
        )
    about = {"name": judge["name"], "fingerprint": judge["fingerprint"], "kind": judge_kind(judge), "verdicts": verdicts}
    return about | {
        "second": _second_judge(metrics),
        "calibration": calibration_figure(judge, (metrics.get("calibration") or {}).get("judge")),
    }


def _second_judge(metrics: Tree) -> dict[str, Any] | None:
    """How a second judge of the same completions compares; None where there is none."""
    second = metrics.get("second_judge")
    if not second:
        return None
    rows = []
    for name, found in metrics["disagreement"].items():
        rows.append(
            {
                "model": model_name(name),
                "agreement": f"{percent(found['agreement']['rate'])} {span(found['agreement'])}",
                "kappa": "–" if found["kappa"] is None else f"{found['kappa']:.2f}",
                **{key: found[key] for key in ("n", "both_harmful", "first_only", "second_only", "neither")},
                "unread": found["unparsed_first"] + found["unparsed_second"] + found["failed_second"],
                "asr": ", ".join(
                    f"{attack_name(attack)} {percent(block['asr'])} {span(block)}" for attack, block in found["asr"].items()
                ),
            }
        )
    return {"name": second["name"], "kind": judge_kind(second), "rows": rows}
