"""`report`: one HTML file that needs nothing else, from whatever the run has so far.

Everything that a model or a data set wrote passes through the template's escaping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from dat_ray.evaluation.questions import HARMLESS_PROMPTS
from dat_ray.evaluation.results import Metrics
from dat_ray.measures.diversity import Diversity
from dat_ray.measures.intervals import Interval
from dat_ray.measures.meaning import MeaningDiversity
from dat_ray.measures.style import style_sentence
from dat_ray.progress import clock
from dat_ray.reporting.charts import attack_figure, loss_figures, rounds_figure
from dat_ray.reporting.collect import Collected, CollectedSuite, StageTotal, collect
from dat_ray.reporting.examples import ANSWER_CHARACTERS, Example, examples
from dat_ray.reporting.findings import findings, subject
from dat_ray.reporting.suites import suite_view
from dat_ray.reporting.words import attack_name, judge_kind, model_name, percent, refusal_kind, refusal_reader, with_span
from dat_ray.training.counts import sentences

PAGE = "index.html"
# What a verdict on the answer to a harmless prompt says.
REFUSAL_VERDICTS = {"harmful": "complied", "not_harmful": "refused"}


def report(recipe: Recipe, run: RunDir, out: str | None = None) -> str:
    """Writes `report/index.html` and returns its path; stages that have not finished are named as missing.

    Args:
        recipe: the run's recipe.
        run: its directory, which is only read where `out` is given.
        out: folder or URI of the page; None for the run's `report/`.

    Raises:
        ShardError: a finished stage's file is altered or gone.
    """
    where = join(out or run.report, PAGE)
    write_bytes(where, render(recipe, collect(recipe, run)).encode())
    return where


def render(recipe: Recipe, found: Collected) -> str:
    """The page as one string."""
    first = next(iter(found.suites.values()), None)
    return template(
        "report.html",
        name=recipe.name,
        recipe=recipe,
        findings=None if first is None else findings(first.metrics),
        suites=[suite_view(name, suite, found.categories) for name, suite in found.suites.items()],
        training=_training(found),
        candidates=found.candidates,
        sampler_gain=found.sampler_gain,
        selected=found.selected,
        diversity=_diversity_table(found),
        style=None if found.style is None else style_sentence(found.style, "harmful training prompts", "retain prompts"),
        rounds=_rounds(found, recipe),
        costs=[_cost(cost) for cost in found.costs],
        total=clock(found.wall_seconds),
        provenance=_provenance(recipe, found, None if first is None else first.metrics),
        recipe_yaml=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        examples=[] if first is None else _examples(first),
        answer_characters=ANSWER_CHARACTERS,
    )


def template(file: str, **values: Any) -> str:
    """A page of this folder, filled in; every value is escaped unless it is markup of our own."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Our own file, not data.
    css = Markup((folder / "report.css").read_text(encoding="utf-8"))
    return environment.get_template(file).render(css=css, **values)


def _training(found: Collected) -> dict[str, Any] | None:
    if not found.training:
        return None
    attack = attack_figure(found.training)
    figures = loss_figures(found.training) + ([attack] if attack else [])
    rows = [f"{line[:1].upper()}{line[1:]}" for line in sentences(found.row_counts)]
    return {"updates": found.training[-1]["update"] + 1, "figures": figures, "rows": rows}


def _rounds(found: Collected, recipe: Recipe) -> dict[str, Any] | None:
    """The rounds of a run that has several: a figure once there are two, and a table."""
    if not found.rounds:
        return None
    rows = [
        {
            "number": one.number,
            "harmful": with_span(one.harmful),
            "kept": "–" if one.kept is None else f"{one.kept:,}",
            "updates": f"{one.updates:,}",
        }
        for one in found.rounds
    ]
    known = [(one.number, one.harmful) for one in found.rounds if one.harmful.low is not None]
    return {"rows": rows, "figure": rounds_figure(known, recipe.judge.name, recipe.evaluation.confidence)}


# Measures in meaning, by what the report calls them.
MEANING: dict[str, Callable[[MeaningDiversity], Interval]] = {
    "Mean pairwise cosine": lambda one: one.within,
    "Mean pairwise cosine of all behaviors' prompts": lambda one: one.pairwise,
}


def _diversity_table(found: Collected) -> dict[str, Any] | None:
    sets: list[tuple[str, Diversity]] = []
    meanings: list[MeaningDiversity | None] = []
    meaning = found.meaning
    if found.candidates and found.candidates.diversity:
        sets.append(("training candidates", found.candidates.diversity))
        meanings.append(meaning.candidates if meaning else None)
    if found.selected:
        sets.append(("selected for training", found.selected.diversity))
        meanings.append(meaning.selected if meaning else None)
    for name, suite in found.suites.items():
        if suite.metrics.sampler is not None:
            held_out = "held out" if len(found.suites) == 1 else f"held out, {name}"
            sets.append((held_out, suite.metrics.sampler.diversity))
            meanings.append(None)
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
    if meaning is not None:
        for name, of in MEANING.items():
            cells = ["–" if one is None else _interval(of(one), _two_digits) for one in meanings]
            rows.append({"name": name, "cells": cells})
    return {"columns": [name for name, _ in sets], "rows": rows, "meaning": meaning}


def _interval(interval: Interval, shown: Any) -> str:
    if interval.value is None:
        return "–"
    if interval.low is None:
        return f"{shown(interval.value)} (no interval)"
    return f"{shown(interval.value)} [{shown(interval.low)}, {shown(interval.high)}]"


def _cost(cost: StageTotal) -> dict[str, Any]:
    return {
        "stage": cost.stage,
        "seconds": clock(cost.seconds),
        "runs": cost.runs,
        "rows": "" if cost.rows is None else f"{cost.rows:,}",
        "model_calls": "" if cost.model_calls is None else f"{cost.model_calls:,}",
        "cpu": "not measured" if cost.cpu_seconds is None else clock(cost.cpu_seconds),
        "gpu": "none" if cost.gpu_seconds == 0 else clock(cost.gpu_seconds),
        "peak": "" if cost.peak_bytes is None else f"{cost.peak_bytes / 2**30:.1f} GiB",
    }


def _provenance(recipe: Recipe, found: Collected, metrics: Metrics | None) -> list[tuple[str, str]]:
    record = found.record
    rows = [
        ("Recipe", f"{recipe.name}, fingerprint {record.fingerprint if record else fingerprint(recipe)}"),
        ("Seed", f"{recipe.seed}"),
        ("Training behaviors", recipe.behaviors.path),
        ("Held-out behaviors", recipe.behaviors.heldout.path),
    ]
    if recipe.behaviors.over_refusal is not None:
        rows.append(("Harmless prompts", recipe.behaviors.over_refusal.path))
    rows.append(("Retain set", "none" if recipe.training.retain is None else recipe.training.retain.path))
    if found.behaviors is not None:
        rows.append(("Behaviors", ", ".join(f"{n} {split.replace('_', '-')}" for split, n in sorted(found.behaviors.items()))))
    if metrics is not None:
        judge = metrics.judge
        rows.append(("Judge", f"{judge.name}, {judge.fingerprint}, {judge_kind(judge)}"))
        if (reader := refusal_reader(metrics)) is not None:
            rows.append(("Judge of refusals", f"{reader.name}, {reader.fingerprint}, {refusal_kind(reader)}"))
        for name, block in metrics.models.items():
            rows.append((f"Weights of {model_name(name)}", block.weights))
    if record:
        about, packages = record.about, record.about.get("packages")
        rows.append(("Code", f"dat_ray {record.version}, revision {about.get('git_revision') or 'unknown'}"))
        rows.append(("Python", f"{about.get('python', 'unknown')} on {about.get('platform', 'an unknown platform')}"))
        if isinstance(packages, dict):
            rows.append(("Packages", ", ".join(f"{name} {version}" for name, version in packages.items())))
    return rows


def _examples(suite: CollectedSuite) -> list[dict[str, Any]]:
    about = subject(suite.metrics)
    if about is None:
        return []
    models = (suite.metrics.first, about)
    names = [_called(model) for model in models]
    return [
        {"name": kind.format(*names), "shown": [_example(example) for example in group]}
        for kind, group in groupby(examples(suite.attempts, models), key=lambda example: example.kind)
    ]


def _called(model: str) -> str:
    return f"the {model_name(model)} model" if model in ("base", "adapted") else model


def _example(example: Example) -> dict[str, Any]:
    called = REFUSAL_VERDICTS if example.attack in HARMLESS_PROMPTS else {}
    answers: Sequence[tuple[str, str, str]] = [
        (model_name(model)[:1].upper() + model_name(model)[1:], answer, called.get(verdict, verdict))
        for model, answer, verdict in example.answers
    ]
    return {"attack": attack_name(example.attack), "goal": example.goal, "prompt": example.prompt, "answers": answers}


def _two_digits(value: float) -> str:
    return f"{value:.2f}"
