"""A comparison of models as a table: Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import methodcaller

from dat_ray.data.shards import join, write_bytes
from dat_ray.evaluation.estimates import BrokenRate
from dat_ray.evaluation.prompt_results import OffGoal
from dat_ray.evaluation.questions import INPAINTED_OVER_REFUSAL, OVER_REFUSAL
from dat_ray.evaluation.results import AnswerKinds, Metrics, ModelMetrics, Rate
from dat_ray.measures.intervals import NOTHING, SHARES, Interval
from dat_ray.printable import printable
from dat_ray.reporting.findings import attacked_otherwise, pair
from dat_ray.reporting.gap_values import KIND_NAMES, GapView, run_gap
from dat_ray.reporting.words import attack_name, judge_kind, model_name, over_refusal_by, variant_name, words

_MARKS = re.compile(r"[\\|`]|(?<=\])[(\[]")
# What a cell begins with that a spreadsheet computes.
_FORMULAS = ("=", "+", "-", "@")


@dataclass(frozen=True)
class Cell:
    """One model's value of one measure, and its paired difference from the first model.

    All are None where nothing was measured; the difference, and its p by Holm's method, are None for the first model too.
    """

    value: float | None
    low: float | None
    high: float | None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    n: int = 0
    p_holm: float | None = None


@dataclass(frozen=True)
class Measure:
    """A row: what was measured, its unit (`rate`, shown in %, `nats`, or none), and a cell for each model."""

    key: str
    name: str
    unit: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Comparison:
    """What the tables are made from; `units` are those that the intervals speak of, `more` is said behind the judge."""

    models: tuple[str, ...]
    measures: tuple[Measure, ...]
    confidence: float
    judge: str
    units: str = "behaviors"
    more: str = ""


def comparison(metrics: Metrics) -> Comparison:
    """Reads one suite's metrics.json."""
    measures = []
    for attack in metrics.attacks:
        measures.append(_measure(metrics, attack, attack_name(attack), "rate", methodcaller("rate_of", attack)))
        for variant in metrics.variants(attack):
            of = methodcaller("rate_of", attack, variant)
            measures.append(_measure(metrics, f"{attack}/{variant}", variant_name(attack, variant), "rate", of))
    measures.append(_measure(metrics, "boa", "Any attack", "rate", lambda model: model.boa.interval))
    measures.append(_measure(metrics, OVER_REFUSAL, "Over-refusal", "rate", lambda model: model.over_refusal.interval))
    if any(model.over_refusal_inpainted for model in metrics.models.values()):
        measures.append(_measure(metrics, INPAINTED_OVER_REFUSAL, "Over-refusal, in-painted", "rate", _refused_inpainted))
    measures += _off_goal(metrics)
    judge = metrics.judge
    said = f"Judged by {judge.name}, {judge_kind(judge)}{over_refusal_by(metrics)}."
    measures += [*beyond_attacks(metrics), *gap_measures(run_gap(metrics), tuple(metrics.models))]
    more = " ".join(attacked_otherwise(metrics))
    return Comparison(tuple(metrics.models), tuple(measures), metrics.confidence, said, more=more)


def gap_measures(view: GapView | None, columns: Sequence[str]) -> list[Measure]:
    """The distribution gap: a measure for each set, gap and kind, as far as it was measured; with differences in a study."""
    found = []
    names = [column.name for column in view.columns] if view is not None else []
    for line in view.lines if view is not None else ():
        by_name = dict(zip(names, zip(line.cells, line.moved, strict=True), strict=True))
        cells = [by_name.get(column, (NOTHING, NOTHING)) for column in columns]
        shown_cells = tuple(Cell(one.value, one.low, one.high, moved.value, moved.low, moved.high, one.n) for one, moved in cells)
        found.append(Measure(line.key, f"{line.name}, {KIND_NAMES[line.kind]}", "nats", shown_cells))
    return found


def beyond_attacks(metrics: Metrics) -> list[Measure]:
    """Likelihood, and kinds of answers to harmless prompts, drift and benchmarks, not paired, as far as some model has them."""
    found = [_measure(metrics, "target_logprob", "Log p(target)", "nats", lambda model: model.target_logprob.interval)]
    models = metrics.models.values()
    if any(model.over_refusal.kinds for model in models):
        found += [
            _measure(metrics, kind, f"Harmless prompts: {words(kind)}", "rate", partial(_kind, of=of))
            for kind, of in KINDS.items()
        ]
    on_look_alikes = {model.kl_drift.data == "look_alikes" for model in models if model.kl_drift is not None}
    if on_look_alikes:
        name = "KL drift, answers to look-alikes" if on_look_alikes == {True} else "KL drift"
        found.append(_measure(metrics, "kl_drift", name, "nats", _drift))
    named = [(task, metric) for model in models for task, figures in model.utility.items() for metric in figures]
    for task, metric in dict.fromkeys(named):
        unit = "rate" if metric.partition(",")[0] in SHARES else ""
        of = partial(_benchmark, task=task, metric=metric)
        found.append(_measure(metrics, f"{task}/{metric}", f"{task}, {metric}", unit, of))
    return found


def _off_goal(metrics: Metrics) -> list[Measure]:
    """Of attacks whose prompts a sampler draws: how many are attacks, the rate over all behaviors, what became of the others."""
    found = []
    for attack in metrics.attacks:
        if not any(attack in model.attacks and model.attacks[attack].off_goal for model in metrics.models.values()):
            continue
        for key, (name, of) in OFF_GOAL.items():
            of_attack = partial(_of_off_goal, attack=attack, of=of)
            found.append(_measure(metrics, f"{attack}/{key}", f"{attack_name(attack)}: {name}", "rate", of_attack))
    return found


OFF_GOAL: dict[str, tuple[str, Callable[[OffGoal], Rate | BrokenRate]]] = {
    "on_goal": ("prompts on the goal", lambda off: off.on_goal),
    "of_all": ("broken of all behaviors", lambda off: off.of_all),
    "all_prompts": ("broken if every prompt counted", lambda off: off.all_prompts),
    "off_goal_refused": ("off the goal, refused", lambda off: off.refused),
}


def _of_off_goal(model: ModelMetrics, attack: str, of: Callable[[OffGoal], Rate | BrokenRate]) -> Interval | None:
    found = model.attacks.get(attack)
    return None if found is None or found.off_goal is None else of(found.off_goal).interval


def _refused_inpainted(model: ModelMetrics) -> Interval | None:
    return None if model.over_refusal_inpainted is None else model.over_refusal_inpainted.interval


KINDS: dict[str, Callable[[AnswerKinds], Rate]] = {
    "full_compliance": lambda kinds: kinds.full_compliance,
    "partial_refusal": lambda kinds: kinds.partial_refusal,
    "full_refusal": lambda kinds: kinds.full_refusal,
}


def _kind(model: ModelMetrics, of: Callable[[AnswerKinds], Rate]) -> Interval | None:
    return None if model.over_refusal.kinds is None else of(model.over_refusal.kinds).interval


def _drift(model: ModelMetrics) -> Interval | None:
    return None if model.kl_drift is None else model.kl_drift.interval


def _benchmark(model: ModelMetrics, task: str, metric: str) -> Interval | None:
    figure = model.utility.get(task, {}).get(metric)
    return None if figure is None else figure.interval


def _measure(metrics: Metrics, key: str, name: str, unit: str, of: Callable[[ModelMetrics], Interval | None]) -> Measure:
    metric, attack = ("asr", key) if key in metrics.attacks else (key, None)
    cells = []
    for model, block in metrics.models.items():
        found = of(block) or NOTHING
        if found.value is None:
            cells.append(Cell(None, None, None))
            continue
        change = None if model == metrics.first else pair(metrics, metric, attack, second=model)
        moved = NOTHING if change is None else change.interval
        p_holm = None if change is None else change.p_holm
        cells.append(Cell(found.value, found.low, found.high, moved.value, moved.low, moved.high, found.n, p_holm))
    return Measure(key, name, unit, tuple(cells))


def shown(cell: Cell, unit: str) -> tuple[str, str]:
    """The value with its interval, and the difference with its interval; `–` where nothing was measured."""
    return _with_interval(cell.value, cell.low, cell.high, unit, ""), (
        _with_interval(cell.difference, cell.difference_low, cell.difference_high, unit, "+")
    )


def labeled(measure: Measure) -> str:
    """Its name, with the unit where that is not the note's %."""
    return f"{measure.name} (nats per token)" if measure.unit == "nats" else measure.name


def _with_interval(value: float | None, low: float | None, high: float | None, unit: str, sign: str) -> str:
    if value is None:
        return "–"
    digits, factor = (0, 100.0) if unit == "rate" else (2, 1.0)
    numbers = [f"{factor * one + 0.0:{sign}.{digits}f}" for one in (value, low, high) if one is not None]
    numbers = [("0" if float(one) == 0 and digits == 0 else one).replace("-", "−") for one in numbers]
    return numbers[0] if low is None or high is None else f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def note(table: Comparison) -> str:
    """What stands below every form of a table: units, intervals, judge."""
    first = model_name(table.models[0])
    # In one line: where it is a comment, a line break would end that.
    return printable(
        f"Rates in % with {100 * table.confidence:g}% intervals over {table.units}; in the columns Δ the paired difference from "
        f"{first}, in points. {table.judge} {table.more}".rstrip()
    )


def grid(table: Comparison) -> tuple[list[str], list[list[str]]]:
    """Names of the columns, the first model's alone and each other's with its difference, and a row of text for each measure."""
    header = ["Measure"]
    for index, model in enumerate(table.models):
        header += [model_name(model)] if index == 0 else [model_name(model), f"Δ {model_name(model)}"]
    rows = []
    for measure in table.measures:
        row = [labeled(measure)]
        for index, cell in enumerate(measure.cells):
            value, difference = shown(cell, measure.unit)
            row += [value] if index == 0 else [value, difference]
        rows.append(row)
    return [printable(name) for name in header], [[printable(cell) for cell in row] for row in rows]


def as_markdown(table: Comparison) -> str:
    """A table of GitHub's Markdown with its note."""
    header, rows = grid(table)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    body = "\n".join("| " + " | ".join(_markdown(cell) for cell in line) + " |" for line in lines)
    return f"{body}\n\n{_markdown(note(table))}\n"


def _markdown(text: str) -> str:
    """Text without the marks that begin a cell, a link, an image, code or HTML."""
    return _MARKS.sub(r"\\\g<0>", text).replace("<", "&lt;")


def as_csv(table: Comparison) -> str:
    """One line a (measure, model): plain numbers, rates in [0, 1], empty where nothing was measured."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    fields = ("value", "low", "high", "difference", "difference_low", "difference_high", "n", "p_holm")
    writer.writerow(["measure", "unit", "model", *fields, "confidence", "judge"])
    for measure in table.measures:
        for model, cell in zip(table.models, measure.cells, strict=True):
            numbers = [getattr(cell, field) for field in fields]
            written = ["" if number is None else number for number in numbers]
            texts = [csv_text(text) for text in (measure.key, measure.unit, model)]
            writer.writerow([*texts, *written, table.confidence, csv_text(table.judge)])
    return stream.getvalue()


def csv_text(text: str) -> str:
    """A cell that a spreadsheet shows, and does not compute: text that it would take for a formula begins with a quote."""
    text = printable(text)
    return f"'{text}" if text.startswith(_FORMULAS) else text


def write_tables(table: Comparison, root: str) -> list[str]:
    """Writes `table.md`, `table.csv` and `table.tex` into a folder; returns their paths."""
    written = []
    for name, text in (("table.md", as_markdown(table)), ("table.csv", as_csv(table)), ("table.tex", as_latex(table))):
        write_bytes(join(root, name), text.encode())
        written.append(join(root, name))
    return written


_TEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}"}
_TEX |= {"^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "−": "$-$", "Δ": r"$\Delta$", "–": "--"}


def as_latex(table: Comparison) -> str:
    r"""A `tabular` that needs no package but booktabs, with the note as a comment line above."""
    header, rows = grid(table)

    def line(cells: Sequence[str]) -> str:
        return " & ".join(tex(cell) for cell in cells) + r" \\"

    body = "\n".join(line(row) for row in rows)
    columns = "l" + "r" * (len(header) - 1)
    return (
        f"% {note(table)}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(header)}\n\\midrule\n{body}\n"
        "\\bottomrule\n\\end{tabular}\n"
    )


def tex(text: str) -> str:
    """Text with LaTeX's special characters written out."""
    return "".join(_TEX.get(character, character) for character in text)
