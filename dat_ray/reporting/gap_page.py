"""The distribution gap on a page: its figures, its table, and what has to be said beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dat_ray.config.study import BASE
from dat_ray.measures.gaps import least_distance
from dat_ray.measures.intervals import NOTHING, Interval
from dat_ray.reporting.charts import Figure
from dat_ray.reporting.figures import Dot, DotRow, dot_plot, number_ruler
from dat_ray.reporting.gap_values import (
    BY_TRAINING,
    GAP_NAMES,
    KIND_NAMES,
    SET_NAMES,
    WHOLE,
    ByKind,
    GapColumn,
    GapView,
)
from dat_ray.reporting.words import model_name, nats, percent, with_span

# Share of values beyond the bound from which it decides the mean.
MOSTLY = 0.5


def gap_section(view: GapView) -> dict[str, Any]:
    """What the template needs: rows of sets and of gaps, a cell a column, and sentences."""
    rows = [
        {"name": line.name, "kind": KIND_NAMES[line.kind], "cells": [with_span(one, nats) for one in line.cells]}
        for line in view.lines
    ]
    rows += [
        {
            "name": f"Beyond ±{view.bound:g} nats: {name[0].lower()}{name[1:]}",
            "kind": KIND_NAMES[kind],
            "cells": [percent(column.clipped.get(key, {}).get(kind)) for column in view.columns],
        }
        for key, name in SET_NAMES.items()
        for kind in view.kinds
        if any(column.clipped.get(key, {}).get(kind) for column in view.columns)
    ]
    return {
        "columns": [model_name(column.name) for column in view.columns],
        "rows": rows,
        "sentences": _sentences(view),
        "figures": gap_figures(view),
        "level": percent(view.confidence),
        "units": view.units,
    }


def gap_figures(view: GapView) -> list[Figure]:
    """R on the sets, for each kind, and the gaps of the last kind."""
    kind = view.kinds[-1]
    figures = [_figure(view, "sets", one) for one in view.kinds]
    if any(column.gaps for column in view.columns):
        figures.append(_figure(view, "gaps", kind))
    return figures


def _figure(view: GapView, what: str, kind: str) -> Figure:
    names = SET_NAMES if what == "sets" else GAP_NAMES
    present = [key for key in names if any(key in getattr(column, what) for column in view.columns)]
    # The base model first, in the style that it has in every figure.
    shown = sorted(view.columns, key=lambda column: column.name != BASE)
    rows = []
    for key in present:
        by_kind = [getattr(column, what).get(key, {}) for column in shown]
        dots = [_dot(series, *one, kind) for series, one in enumerate(zip(shown, by_kind, strict=True))]
        rows.append(DotRow(names[key], dots))
    found: ByKind = getattr(view.about, what)
    said = [(names[key].lower(), found[key][kind].value) for key in present if kind in found.get(key, {})]
    first_last = [said[0], said[-1]] if len(said) > 1 else said
    values = ", ".join(f"{nats(value)} {name}" for name, value in first_last if value is not None)
    subject = f"Log p of harmful responses {KIND_NAMES[kind]}" if what == "sets" else f"Gaps in it {KIND_NAMES[kind]}"
    title = f"{subject}, {model_name(view.subject)}: {values}"
    caption = (
        f"Mean over behaviors, nats per token, clipped to ±{view.bound:g}; higher is worse. Bars are {percent(view.confidence)} "
        f"intervals over {view.units}."
    )
    axis = "log p(harmful response), nats per token" if what == "sets" else "difference, nats per token"
    return Figure(title, dot_plot(rows, title, axis, number_ruler(rows)), caption)


def _differences(view: GapView) -> list[str]:
    """How much larger each column's gaps are than those of the one that is compared with."""
    kind, found = view.kinds[-1], []
    for key, name in GAP_NAMES.items():
        moved = {column.name: column.moved_gaps.get(key, {}).get(kind, NOTHING) for column in view.columns}
        told = [f"{model_name(column)} {with_span(one, nats)}" for column, one in moved.items() if one.value is not None]
        if told:
            found.append(f"{name} {KIND_NAMES[kind]}, more than {view.subject}'s: {'; '.join(told)}.")
    return [*found, *_without_bound(view), "These intervals are not corrected for their number."] if found else []


def _without_bound(view: GapView) -> list[str]:
    """The same of the whole gap, where no bound hides how unlikely a response is."""
    kind, found = view.kinds[-1], []
    for key in (WHOLE, BY_TRAINING):
        moved = {column.name: column.moved_gaps.get(key, {}).get(kind, NOTHING) for column in view.unbounded}
        told = [f"{model_name(column)} {with_span(one, nats)}" for column, one in moved.items() if one.value is not None]
        if told:
            found.append(
                f"Without the bound: {GAP_NAMES[key]} {KIND_NAMES[kind]}, more than {view.subject}'s: {'; '.join(told)}."
            )
    return found


def _at_the_bound(view: GapView) -> list[str]:
    """Sets and kinds on which the bound decides a mean, and so the gaps from them."""
    places = []
    for key, name in SET_NAMES.items():
        for kind in view.kinds:
            held = [model_name(one.name) for one in view.columns if one.clipped.get(key, {}).get(kind, 0.0) > MOSTLY]
            if held:
                places.append(f"{name[0].lower()}{name[1:]} {KIND_NAMES[kind]} ({', '.join(held)})")
    if not places:
        return []
    return [
        f"Most values are at the bound of ±{view.bound:g} nats on {'; '.join(places)}: R cannot fall any further "
        "there, intervals are too narrow, and a gap from there is cut short. Raise evaluation.gap.bound before reading it."
    ]


def _dot(series: int, column: GapColumn, by_kind: Mapping[str, Interval], kind: str) -> Dot:
    found = by_kind.get(kind, NOTHING)
    return Dot(series, model_name(column.name), found.value, found.low, found.high)


def _sentences(view: GapView) -> list[str]:
    """Where the bound acted, how many training prompts are goals, and what the theorem makes of the gap."""
    found = _at_the_bound(view)
    absent = [name.lower() for key, name in SET_NAMES.items() if key not in view.about.sets]
    if absent:
        found.append(f"Not measured: {', '.join(absent)}.")
    failed = [f"{model_name(one.name)} {one.errors}" for one in view.columns if one.errors]
    if failed:
        found.append(f"Prompts that could not be scored: {', '.join(failed)}.")
    goals = [f"{model_name(one.name)} {one.goals[0]} of {one.goals[1]}" for one in view.columns if one.goals[0]]
    if goals:
        found.append(f"Training prompts that are behaviors' own goals: {', '.join(goals)}.")
    found += _differences(view)
    people = view.about.gaps.get("people", {}).get(view.kinds[-1], NOTHING)
    if people.value is not None and people.low is not None and people.high is not None:
        # Rounded down: it is a least distance.
        least = math.floor(100 * least_distance(max(people.low, -people.high, 0.0), view.bound)) / 100
        found.append(
            f"Theorem 3.1 read backwards: with the bound {view.bound:g}, the end nearer to 0 of the interval of "
            f"{model_name(view.subject)}'s gap between written prompts and the sampler's {KIND_NAMES[view.kinds[-1]]} says that "
            f"the two laws of the prompt are at least {least:.2f} apart in mean total variation."
        )
    return found
