"""How the fronts of a study are shown: a figure an arm, a table in every form, the points behind them, one sentence."""

from __future__ import annotations

import csv
import io
from typing import Any

from dat_ray.config.front_section import FRONTS
from dat_ray.config.study import BASE, Study
from dat_ray.data.shards import join, write_bytes
from dat_ray.evaluation.outcomes import SHARE
from dat_ray.measures.fronts import front
from dat_ray.measures.intervals import Interval
from dat_ray.reporting.charts import Figure
from dat_ray.reporting.figures import Line, line_plot
from dat_ray.reporting.study_figures import BOA, StudyMeasure, cell_of, columns, difference_rows, measure_name, units_of
from dat_ray.reporting.study_fronts import AT, ArmFront, StudyFronts
from dat_ray.reporting.tables import Comparison, Measure, csv_text, write_tables
from dat_ray.reporting.words import (
    attack_name,
    differing,
    judge_kind,
    judge_name,
    over_refusal_by,
    percent,
    points,
    unread_by,
    with_span,
)

POINTS = "points.csv"
# Beside seeds.
UNITS = ("behaviors", "look-alikes")
REFUSES_MORE = "refuses more"


def fronts_table(plan: Study, fronts: StudyFronts) -> Comparison:
    """Both figures by arms."""
    arms = [arm for arm in columns(plan) if arm != BASE]
    rows = tuple(Measure(one.key, one.name, "rate", tuple(cell_of(one, arm) for arm in arms)) for one in fronts.measures)
    judge = fronts.metrics.judge
    readers = f"{judge.name}, {judge_kind(judge)}{over_refusal_by(fronts.metrics)}"
    said = f"Judged by {readers}. –: all adapters of the arm refuse more. {_refuse_less(fronts)}".strip()
    return Comparison(tuple(arms), rows, fronts.metrics.confidence, said, units_of(plan, *UNITS))


def write_fronts(plan: Study, fronts: StudyFronts, root: str) -> None:
    """Writes the tables, and the points behind them as CSV, into `tables/fronts` below a study's folder."""
    folder = join(root, "tables", FRONTS)
    write_tables(fronts_table(plan, fronts), folder)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    sides = ("over_refusal", "broken")
    writer.writerow(["arm", "updates", *(f"{side}{end}" for side in sides for end in ("", "_low", "_high", "_n"))])
    for arm, found in fronts.arms.items():
        for step in found.steps:
            numbers = [number for one in (step.refused, step.broken) for number in (one.value, one.low, one.high, one.n)]
            writer.writerow([csv_text(arm), step.updates, *("" if number is None else number for number in numbers)])
    write_bytes(join(folder, POINTS), stream.getvalue().encode())


def fronts_finding(plan: Study, fronts: StudyFronts) -> str:
    """A sentence a figure: how arms differ from the reference at one over-refusal, and on average up to it; who refuses less."""
    if not fronts.arms:
        return "No fronts: no answer of the base model to the attacks, or none to the look-alikes, could be judged."
    said = [_sentence(plan.reference, one, fronts.metrics.confidence) for one in fronts.measures]
    return " ".join([*said, _refuse_less(fronts)]).strip()


def _refuse_less(fronts: StudyFronts) -> str:
    arms = fronts.refuse_less
    told = ", ".join(f"{arm} ({percent(end)})" for arm, end in arms.items())
    return f"Compared by the least broken adapter, which refuses less: {told}." if arms else ""


def _sentence(reference: str, measure: StudyMeasure, confidence: float) -> str:
    said = differing(_moved(measure, arm, confidence) for arm in measure.differences)
    # An arm alone differs from none.
    return f"{measure.name}: {'; '.join(filter(None, [f'{reference} {_reached(measure.rates[reference])}', said]))}."


def _reached(rate: Interval) -> str:
    return REFUSES_MORE if rate.value is None else percent(rate.value)


def _moved(measure: StudyMeasure, arm: str, confidence: float) -> tuple[bool, str]:
    """Whether an arm's difference is beyond chance, or it has none, and the words for it."""
    found = measure.differences[arm]
    if found.interval.value is None:
        return True, f"{arm} {_reached(measure.rates[arm])}"
    told = f"{arm} {percent(measure.rates[arm].value)} ({points(found.interval.value)} points)"
    return found.beyond_chance(confidence), told


def fronts_view(plan: Study, fronts: StudyFronts) -> dict[str, Any]:
    """What the page's section is made from."""
    arms = list(fronts.arms)
    return {
        "over_refusal": percent(fronts.over_refusal),
        "attacks": ", ".join(attack_name(attack) for attack in fronts.metrics.attacks),
        # Where any of several prompts breaks a behavior, a draw for each of them would break more.
        "drawn": "each request" if fronts.measure.endswith(SHARE) else "all requests of one behavior",
        "broken": "Prompts that succeed" if fronts.measure.endswith(SHARE) else "Behaviors broken",
        "units": units_of(plan, *UNITS),
        "finding": fronts_finding(plan, fronts),
        "figures": [_figure(plan, fronts, arm) for arm in arms[1:] or arms],
        "columns": arms,
        "rows": [{"name": one.name, "cells": [_cell(one.rates[arm]) for arm in arms]} for one in fronts.measures],
        "differences": [
            row | ({"interval": REFUSES_MORE} if row["difference"] == "–" else {})
            for row in difference_rows(fronts.measures, fronts.metrics.confidence)
        ],
        "steps": [
            {
                "arm": arm if number == 0 else "",
                "updates": step.updates,
                "refused": with_span(step.refused),
                "broken": with_span(step.broken),
            }
            for arm, found in fronts.arms.items()
            for number, step in enumerate(found.steps)
        ],
        "unread": ", ".join(fronts.unread),
        "errors": fronts.metrics.errors,
        "attempts": fronts.metrics.attempts,
        "unread_by": unread_by(fronts.metrics),
        "folder": FRONTS,
    }


def _cell(rate: Interval) -> str:
    return REFUSES_MORE if rate.value is None else with_span(rate)


def _figure(plan: Study, fronts: StudyFronts, arm: str) -> Figure:
    """An arm's front beside the reference's."""
    shown = list(dict.fromkeys([plan.reference, arm]))
    at = next(one for one in fronts.measures if one.key == AT)
    broken = "; ".join(f"{one} {_reached(at.rates[one])}" for one in shown)
    lines = [_line(series, one, fronts.arms[one]) for series, one in enumerate(shown, start=1)]
    base = next(iter(fronts.arms.values())).points[0]
    here = (100 * float(base[0]), float(base[1]))
    lines.append(Line(0, "base model", [here]))
    lines.append(Line(None, "", [(100 * fronts.over_refusal, 0.0), (100 * fronts.over_refusal, 1.0)]))
    title = f"{at.name}: {broken}"
    upward = "behaviors broken by any attack" if fronts.measure == BOA else measure_name(fronts.measure)
    svg = line_plot(lines, title, "look-alikes refused, %", upward, share=True)
    caption = (
        f"A mark an adapter along the training, mean over {units_of(plan, *UNITS)}; a line the front: the least attack success "
        f"of any mixture of two adapters that refuses no more. Judged by {judge_name(fronts.metrics.judge)}"
        f"{over_refusal_by(fronts.metrics)}. Arms are compared at the faint line."
    )
    return Figure(title, svg, caption)


def _line(series: int, arm: str, found: ArmFront) -> Line:
    corners = front(found.points)
    # Flat from the least broken adapter to the one that refuses most.
    end = (float(found.points[:, 0].max()), corners[-1][1])
    drawn = [(100 * x, y) for x, y in dict.fromkeys([*corners, end])]
    return Line(series, arm, drawn, marks=[(100 * float(x), float(y)) for x, y in found.points[1:]])
