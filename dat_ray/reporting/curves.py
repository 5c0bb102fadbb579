"""`dat curves`: the training curves of several runs on one page, so that recipes can be told apart by what they do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from dat_ray.data.row_types import RowViews
from dat_ray.data.rundir import open_to_read, rounds_begun
from dat_ray.data.shards import join, write_bytes
from dat_ray.errors import DatError, InputError
from dat_ray.reporting.charts import TERMS, Figure, Term
from dat_ray.reporting.figures import STYLES, Line, line_plot
from dat_ray.reporting.stage import PAGE, template
from dat_ray.training.update_metrics import read_rounds

NUMBERS = "curves.json"
# Of `metrics.jsonl`; those of a report come first.
CURVES = (
    *TERMS,
    Term("gained", "What the attack gains", "nats per token", "fall of the harmful target's CE from first to last iterate"),
    Term("perturbation", "Size of the perturbation", "mean L2 norm / mean embedding norm", "after the attack's last step"),
    Term("gradient_norm", "Gradient norm", "L2, before clipping", "of the adapter's parameters"),
)


def curves(run_dirs: Sequence[str], out: str) -> str:
    """Writes `index.html` and `curves.json` of the runs' trainings into `out`; returns the page's path.

    Args:
        run_dirs: directories of runs that have begun training; rounds follow one another.
        out: folder or URI.

    Raises:
        InputError: a folder that holds no run, or more runs than can be told apart.
        DatError: a run without a training curve.
    """
    if len(run_dirs) > STYLES:
        raise InputError("RUN_DIR", f"{len(run_dirs)} runs", f"a page tells {STYLES} apart: give no more")
    found: dict[str, RowViews] = {}
    for root in run_dirs:
        run, record = open_to_read(root)
        rows = read_rounds([run.training(index) for index in rounds_begun(run, record.recipe)])
        if not rows:
            raise DatError(f"{root} holds no training curve: run `dat train --run-dir {root}`")
        found[_name(PurePosixPath(root.rstrip("/")).name or record.recipe.name, found)] = rows
    write_bytes(join(out, NUMBERS), json.dumps(numbers(found), indent=1).encode())
    where = join(out, PAGE)
    write_bytes(where, render_curves(found).encode())
    return where


def _name(name: str, taken: Mapping[str, Any]) -> str:
    number = sum(one == name or one.startswith(f"{name} (") for one in taken)
    return f"{name} ({number + 1})" if number else name


def values(rows: RowViews, key: str) -> list[tuple[int, float]]:
    """(update, value) wherever the run logged it."""
    return [(int(row["update"]), value) for row in rows if (value := _value(row, key)) is not None]


def _value(row: Mapping[str, Any], key: str) -> float | None:
    if key == "gained":
        trace = list(row.get("attack_ce") or [])
        return float(trace[0] - trace[-1]) if len(trace) > 1 else None
    if key == "perturbation":
        return float(row["attack_norm"][-1]) if row.get("attack_norm") else None
    return None if row.get(key) is None else float(row[key])


def numbers(found: Mapping[str, RowViews]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """By run and by curve, what the figures draw."""
    return {name: {term.key: points for term in CURVES if (points := values(rows, term.key))} for name, rows in found.items()}


def render_curves(found: Mapping[str, RowViews]) -> str:
    """The page as one string."""
    drawn = numbers(found)
    figures, shown = [], []
    for term in CURVES:
        lines = [
            Line(index, name, [(float(update), value) for update, value in drawn[name][term.key]])
            for index, name in enumerate(found)
            if term.key in drawn[name]
        ]
        if not lines:
            continue
        title = f"{term.name}, {len(lines)} run{'s' if len(lines) > 1 else ''}"
        caption = f"An update's mean, {term.meaning}."
        if len(lines) < len(found):
            caption += f" Not part of {', '.join(name for name in found if term.key not in drawn[name])}."
        figures.append(Figure(title, line_plot(lines, title, "update", term.unit), caption))
        shown.append(term)
    table = [{"name": name, "cells": [_ends(drawn[name].get(term.key)) for term in shown]} for name in found]
    return template("curves.html", names=list(found), figures=figures, columns=[term.name for term in shown], table=table)


def _ends(points: Sequence[tuple[int, float]] | None) -> str:
    if not points:
        return "–"
    return f"{points[0][1]:.3g} → {points[-1][1]:.3g}".replace("-", "−")
