"""A comparison of models as a table: for a terminal, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from dat_ray.data.shards import join, write_bytes
from dat_ray.evaluation.attacks import OVER_REFUSAL
from dat_ray.evaluation.metrics import SHARES
from dat_ray.printable import printable
from dat_ray.reporting.findings import first_model, pair
from dat_ray.reporting.words import Tree, attack_name, judge_kind, model_name, words

_MARKS = re.compile(r"[\\|`]|(?<=\])[(\[]")
# What a cell begins with that a spreadsheet computes.
_FORMULAS = ("=", "+", "-", "@")


@dataclass(frozen=True)
class Cell:
    """One model's value of one measure, and its paired difference from the first model.

    All are None where nothing was measured; the difference is None for the first model too.
    """

    value: float | None
    low: float | None
    high: float | None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    n: int = 0


@dataclass(frozen=True)
class Measure:
    """A row: what was measured, its unit (`rate`, shown in %, `nats`, or none), and a cell for each model."""

    key: str
    name: str
    unit: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Comparison:
    """What the tables are made from."""

    models: tuple[str, ...]
    measures: tuple[Measure, ...]
    confidence: float
    judge: str


def comparison(metrics: Tree) -> Comparison:
    """Reads one suite's metrics.json."""
    models = tuple(metrics["models"])
    attacks = dict.fromkeys(attack for block in metrics["models"].values() for attack in block["attacks"])
    measures = [
        _measure(metrics, attack, attack_name(attack), "rate", ("attacks", attack), "asr", ("asr", attack)) for attack in attacks
    ]
    measures.append(_measure(metrics, "boa", "Any attack", "rate", ("boa",), "asr", ("boa", None)))
    measures.append(_measure(metrics, "over_refusal", "Over-refusal", "rate", ("over_refusal",), "rate", (OVER_REFUSAL, None)))
    likelihood = _measure(
        metrics, "target_logprob", "Log p(target)", "nats", ("target_logprob",), "mean", ("target_logprob", None)
    )
    judge = metrics["judge"]
    said = f"Judged by {judge['name']}, {judge_kind(judge)}."
    return Comparison(models, (*measures, likelihood, *side_effects(metrics)), metrics["confidence"], said)


def side_effects(metrics: Tree) -> list[Measure]:
    """Kinds of answers to harmless prompts, drift and benchmarks, as far as some model has them; not paired."""
    found = []
    blocks = metrics["models"].values()
    if any(block["over_refusal"].get("kinds") for block in blocks):
        found += [
            _measure(metrics, kind, f"Harmless prompts: {words(kind)}", "rate", ("over_refusal", "kinds", kind), "rate")
            for kind in ("full_compliance", "partial_refusal", "full_refusal")
        ]
    if any(block.get("kl_drift") for block in blocks):
        found.append(_measure(metrics, "kl_drift", "KL drift", "nats", ("kl_drift",), "mean"))
    named = [(task, metric) for block in blocks for task, one in (block.get("utility") or {}).items() for metric in one]
    for task, metric in dict.fromkeys(named):
        unit = "rate" if metric.partition(",")[0] in SHARES else ""
        found.append(_measure(metrics, f"{task}/{metric}", f"{task}, {metric}", unit, ("utility", task, metric), "value"))
    return found


def _measure(
    metrics: Tree, key: str, name: str, unit: str, path: Sequence[str], field: str, paired: tuple[str, str | None] | None = None
) -> Measure:
    cells = []
    for model, tree in metrics["models"].items():
        block: Any = tree
        for step in path:
            block = block.get(step) if block else None
        if not block or block[field] is None:
            cells.append(Cell(None, None, None))
            continue
        found = None if paired is None or model == first_model(metrics) else pair(metrics, *paired, second=model)
        low, high = (None, None) if found is None else (found["low"], found["high"])
        n = block.get("n_behaviors", block.get("n")) or 0
        cells.append(
            Cell(block[field], block["low"], block["high"], None if found is None else found["difference"], low, high, n)
        )
    return Measure(key, name, unit, tuple(cells))


def shown(cell: Cell, unit: str) -> tuple[str, str]:
    """The value with its interval, and the difference with its interval; `–` where nothing was measured."""
    return _with_interval(cell.value, cell.low, cell.high, unit, ""), (
        _with_interval(cell.difference, cell.difference_low, cell.difference_high, unit, "+")
    )


def labelled(measure: Measure) -> str:
    """Its name, with the unit where that is not the note's %."""
    return f"{measure.name} (nats per token)" if measure.unit == "nats" else measure.name


def _with_interval(value: float | None, low: float | None, high: float | None, unit: str, sign: str) -> str:
    if value is None:
        return "–"
    digits, factor = (0, 100.0) if unit == "rate" else (2, 1.0)
    numbers = [f"{factor * one + 0.0:{sign}.{digits}f}" for one in (value, low, high) if one is not None]
    numbers = [("0" if float(one) == 0 and digits == 0 else one).replace("-", "−") for one in numbers]
    return numbers[0] if low is None or high is None else f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def _note(table: Comparison) -> str:
    first = model_name(table.models[0])
    # In one line: where it is a comment, a line break would end that.
    return printable(
        f"Rates in % with {100 * table.confidence:g}% intervals over behaviors; in the columns Δ the paired difference from "
        f"{first}, in points. {table.judge}"
    )


def _grid(table: Comparison) -> tuple[list[str], list[list[str]]]:
    header = ["Measure"]
    for index, model in enumerate(table.models):
        header += [model_name(model)] if index == 0 else [model_name(model), f"Δ {model_name(model)}"]
    rows = []
    for measure in table.measures:
        row = [labelled(measure)]
        for index, cell in enumerate(measure.cells):
            value, difference = shown(cell, measure.unit)
            row += [value] if index == 0 else [value, difference]
        rows.append(row)
    return [printable(name) for name in header], [[printable(cell) for cell in row] for row in rows]


def as_rich(table: Comparison) -> Table:
    """For a terminal."""
    header, rows = _grid(table)
    found = Table(caption=Text(_note(table)), caption_justify="left")
    for index, name in enumerate(header):
        # As text: what a name says in [brackets] is not for the terminal to obey.
        found.add_column(Text(name), justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in rows:
        found.add_row(*map(Text, row))
    return found


def as_markdown(table: Comparison) -> str:
    """A table of GitHub's Markdown with its note."""
    header, rows = _grid(table)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    body = "\n".join("| " + " | ".join(_markdown(cell) for cell in line) + " |" for line in lines)
    return f"{body}\n\n{_markdown(_note(table))}\n"


def _markdown(text: str) -> str:
    """Text without the marks that begin a cell, a link, an image, code or HTML."""
    return _MARKS.sub(r"\\\g<0>", text).replace("<", "&lt;")


def as_csv(table: Comparison) -> str:
    """One line a (measure, model): plain numbers, rates in [0, 1], empty where nothing was measured."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    fields = ("value", "low", "high", "difference", "difference_low", "difference_high", "n")
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
    header, rows = _grid(table)

    def line(cells: Sequence[str]) -> str:
        return " & ".join(tex(cell) for cell in cells) + r" \\"

    body = "\n".join(line(row) for row in rows)
    columns = "l" + "r" * (len(header) - 1)
    return (
        f"% {_note(table)}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(header)}\n\\midrule\n{body}\n"
        "\\bottomrule\n\\end{tabular}\n"
    )


def tex(text: str) -> str:
    """Text with LaTeX's special characters written out."""
    return "".join(_TEX.get(character, character) for character in text)
