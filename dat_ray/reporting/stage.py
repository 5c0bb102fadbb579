"""`report`: one HTML file that needs nothing else, from whatever the run has so far.

Everything that a model or a data set wrote passes through the template's escaping.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dat_ray.config.loading import fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import join, write_bytes
from dat_ray.evaluation.diversity import Diversity
from dat_ray.evaluation.intervals import Interval
from dat_ray.progress import clock
from dat_ray.reporting.charts import asr_figure, attack_figure, attack_name, loss_figures, refusal_figure
from dat_ray.reporting.collect import ANSWER_CHARACTERS, Collected, Example, StageCost, collect
from dat_ray.reporting.findings import Tree, findings, percent, points, span

PAGE = "index.html"
MODELS = {"base": "base", "adapted": "fine-tuned"}
MEASURES = {"boa": "Any attack", "over_refusal": "Over-refusal", "target_logprob": "Mean log p(target)"}


def report(recipe: Recipe, run: RunDir) -> str:
    """Writes `report/index.html` and returns its path; stages that have not finished are named as missing.

    Args:
        recipe: the run's recipe.
        run: its directory.

    Raises:
        ShardError: a finished stage's file is altered or gone.
    """
    where = join(run.report, PAGE)
    write_bytes(where, render(recipe, collect(recipe, run)).encode())
    return where


def render(recipe: Recipe, found: Collected) -> str:
    """The page as one string."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    first = next(iter(found.suites.values()), None)
    return environment.get_template("report.html").render(
        name=recipe.name,
        recipe=recipe,
        # Our own file, not data.
        css=Markup((folder / "report.css").read_text(encoding="utf-8")),
        findings=None if first is None else findings(first),
        suites=[_suite(name, metrics) for name, metrics in found.suites.items()],
        training=_training(found),
        candidates=found.candidates,
        sampler_gain=found.sampler_gain,
        selected=found.selected,
        diversity=_diversity_table(found),
        costs=[_cost(cost) for cost in found.costs],
        provenance=_provenance(recipe, found, first),
        recipe_yaml=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        examples=_by_kind(found.examples),
        answer_characters=ANSWER_CHARACTERS,
    )


def _suite(name: str, metrics: Tree) -> dict[str, Any]:
    return {
        "name": name,
        "level": percent(metrics["confidence"]),
        "asr": asr_figure(metrics),
        "refusal": refusal_figure(metrics),
        "rates": _rates(metrics),
        "pairs": [_pair(row) for row in metrics["paired"]],
    }


def _rates(metrics: Tree) -> list[dict[str, Any]]:
    rows = []
    for attack in metrics["models"]["base"]["attacks"]:
        for model, shown in MODELS.items():
            block = metrics["models"][model]["attacks"][attack]
            pooled = block["attempt_rate"]
            rows.append(
                {
                    "attack": attack_name(attack),
                    "model": shown,
                    "rate": percent(block["asr"]),
                    "interval": span(block),
                    "behaviors": block["n_behaviors"],
                    "attempts": block["attempts"],
                    "attempt_rate": f"{percent(pooled['rate'])} {span(pooled)}",
                    "unparsed": block["unparsed"],
                    "errors": block["errors"],
                }
            )
    rows += [_short_row("Any attack", shown, metrics["models"][model]["boa"], "asr") for model, shown in MODELS.items()]
    rows += [
        _short_row("Over-refusal (refused)", shown, metrics["models"][model]["over_refusal"], "rate")
        for model, shown in MODELS.items()
    ]
    return rows


def _short_row(label: str, model: str, block: Tree, key: str) -> dict[str, Any]:
    return {
        "attack": label,
        "model": model,
        "rate": percent(block[key]),
        "interval": span(block),
        "behaviors": block.get("n_behaviors", block.get("n")),
        "attempts": "",
        "attempt_rate": "",
        "unparsed": block.get("unparsed", ""),
        "errors": block.get("errors", ""),
    }


def _pair(row: Tree) -> dict[str, Any]:
    measure = attack_name(row["attack"]) if row["metric"] == "asr" else MEASURES[row["metric"]]
    shown, unit = (_nats, "nats") if row["metric"] == "target_logprob" else (points, "points")
    difference = "–" if row["difference"] is None else f"{shown(row['difference'])} {unit}"
    return {"measure": measure, "difference": difference, "interval": span(row, shown), "n": row["n"]}


def _training(found: Collected) -> dict[str, Any] | None:
    if not found.training:
        return None
    attack = attack_figure(found.training)
    figures = loss_figures(found.training) + ([attack] if attack else [])
    return {"updates": found.training[-1]["update"] + 1, "figures": figures}


def _diversity_table(found: Collected) -> dict[str, Any] | None:
    sets: list[tuple[str, Diversity]] = []
    if found.candidates and found.candidates.diversity:
        sets.append(("training candidates", found.candidates.diversity))
    if found.selected:
        sets.append(("selected for training", found.selected.diversity))
    for name, metrics in found.suites.items():
        if metrics["sampler"]:
            held_out = "held out" if len(found.suites) == 1 else f"held out, {name}"
            sets.append((held_out, Diversity.from_dict(metrics["sampler"]["diversity"])))
    if not sets:
        return None
    measures = (
        ("Prompts", lambda d: str(d.prompts)),
        ("Unique", lambda d: _interval(d.unique, percent)),
        ("Near-duplicates", lambda d: _interval(d.near_duplicate, percent)),
        ("Mean pairwise similarity", lambda d: _interval(d.similarity, _two_digits)),
        ("Distinct words (distinct-1)", lambda d: _interval(d.distinct_1, _two_digits)),
        ("Distinct word pairs (distinct-2)", lambda d: _interval(d.distinct_2, _two_digits)),
        ("Effective share (Vendi score / prompts)", lambda d: _interval(d.effective, percent)),
        ("Holds its whole response", lambda d: _interval(d.leaked, percent)),
        ("Word pairs copied from the response", lambda d: _interval(d.copied, percent)),
        ("Model calls a prompt", lambda d: _interval(d.model_calls, lambda value: f"{value:.1f}")),
        ("Bound on log p(x|y), nats a token", lambda d: _interval(d.log_likelihood, _two_digits)),
        ("Gain over another's response, nats a token", lambda d: _interval(d.gain, _two_digits)),
        ("Length in words", lambda d: _interval(d.words, lambda value: f"{value:.1f}")),
        ("Length at 0 / 25 / 50 / 75 / 100%", lambda d: " / ".join(f"{value:g}" for value in d.length_quantiles)),
    )
    rows = [{"name": name, "cells": [cell(statistics) for _, statistics in sets]} for name, cell in measures]
    return {"columns": [name for name, _ in sets], "rows": rows}


def _interval(interval: Interval, shown: Any) -> str:
    if interval.value is None:
        return "–"
    return f"{shown(interval.value)} [{shown(interval.low)}, {shown(interval.high)}]"


def _cost(cost: StageCost) -> dict[str, Any]:
    return {
        "stage": cost.stage,
        "seconds": clock(cost.seconds),
        "runs": cost.runs,
        "rows": "" if cost.rows is None else cost.rows,
        "model_calls": "" if cost.model_calls is None else cost.model_calls,
        "peak": "" if cost.peak_bytes is None else f"{cost.peak_bytes / 2**30:.1f} GiB",
    }


def _provenance(recipe: Recipe, found: Collected, metrics: Tree | None) -> list[tuple[str, str]]:
    record = found.record
    rows = [
        ("Fingerprint", record.get("fingerprint", fingerprint(recipe))),
        ("Seed", str(recipe.seed)),
        ("Round", str(recipe.round)),
    ]
    if found.behaviors is not None:
        rows.append(("Behaviors", ", ".join(f"{n} {split}" for split, n in sorted(found.behaviors.items()))))
    if metrics is not None:
        judge = metrics["judge"]
        kind = "rule-based proxy" if judge["is_proxy"] else "harm judge"
        rows.append(("Judge", f"{judge['name']}, {judge['fingerprint']}, {kind}"))
        rows.append(("Adapter digest", metrics["models"]["adapted"]["weights"]))
    if record:
        rows.append(("Code", f"dat_ray {record['dat_ray']}, revision {record['git_revision'] or 'unknown'}"))
        rows.append(("Python", f"{record['python']} on {record['platform']}"))
        rows.append(("Packages", ", ".join(f"{name} {version}" for name, version in record["packages"].items())))
    return rows


def _by_kind(examples: Sequence[Example]) -> list[dict[str, Any]]:
    return [
        {"name": kind, "shown": [_example(example) for example in group]}
        for kind, group in groupby(examples, key=lambda example: example.kind)
    ]


def _example(example: Example) -> dict[str, Any]:
    return {
        "attack": "Harmless look-alike" if example.attack == "over_refusal" else attack_name(example.attack),
        "goal": example.goal,
        "prompt": example.prompt,
        "answers": example.answers,
    }


def _two_digits(value: float) -> str:
    return f"{value:.2f}"


def _nats(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
