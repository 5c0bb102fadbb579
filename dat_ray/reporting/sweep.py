"""The page of a sweep: the front of robustness against compliance, and every point with its intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dat_ray.config.schema import Recipe
from dat_ray.data.shards import join, write_bytes
from dat_ray.evaluation.compared import ADAPTED, BASE
from dat_ray.evaluation.results import Metrics, ModelMetrics
from dat_ray.reporting.charts import LETTERS, FrontPoint, front_figure, front_point, undominated
from dat_ray.reporting.stage import template
from dat_ray.reporting.tables import csv_text
from dat_ray.reporting.words import judge_kind, over_refusal_by, percent, rate_name, span

BASE_LABEL = "base model"


@dataclass(frozen=True)
class SweepRow:
    """One point.

    Attributes:
        label: what tells it from the others.
        folder: its run directory, relative to the sweep's.
        metrics: of its evaluation; None where it failed.
        error: why it failed.
    """

    label: str
    folder: str
    metrics: Metrics | None
    error: str | None


def write_front(recipe: Recipe, grid: Mapping[str, Sequence[Any]], rows: Sequence[SweepRow], root: str) -> str:
    """Writes `index.html` and `front.csv`; returns the page's path."""
    where = join(root, "index.html")
    write_bytes(where, render_front(recipe, grid, rows).encode())
    write_bytes(join(root, "front.csv"), front_csv(rows).encode())
    return where


def front_points(rows: Sequence[SweepRow]) -> list[FrontPoint]:
    """The base model, once, and every point for which both rates were measured."""
    found = [front_point(label, model) for label, _, model in _models(rows)]
    return [point for point in found if point is not None]


def _models(rows: Sequence[SweepRow]) -> list[tuple[str, str | None, ModelMetrics]]:
    """Label, folder and figures of the base model, as the first point has it, and of every finished point."""
    finished = [(row, row.metrics) for row in rows if row.metrics is not None]
    base = [(BASE_LABEL, None, metrics.models[BASE]) for _, metrics in finished[:1]]
    return [*base, *((row.label, row.folder, metrics.models[ADAPTED]) for row, metrics in finished)]


def render_front(recipe: Recipe, grid: Mapping[str, Sequence[Any]], rows: Sequence[SweepRow]) -> str:
    """The page as one string."""
    first = next((row.metrics for row in rows if row.metrics is not None), None)
    found = front_points(rows)
    best = undominated(found)
    figure = None if first is None else front_figure(found, first)
    keys = {point.label: LETTERS[index % 26] + str(index // 26 or "") for index, point in enumerate(found)}
    return template(
        "sweep.html",
        name=recipe.name,
        target=recipe.target.model,
        grid=[(field, ", ".join(map(str, values))) for field, values in grid.items()],
        headline=_headline(rows, found, best, first),
        judge=None if first is None else f"{first.judge.name}, {judge_kind(first.judge)}{over_refusal_by(first)}",
        level=None if first is None else percent(first.confidence),
        figure=figure,
        rows=_rows(rows, keys, {point.label for point in best}),
        failures=[row for row in rows if row.error is not None],
    )


def _headline(rows: Sequence[SweepRow], found: Sequence[FrontPoint], best: Sequence[FrontPoint], first: Metrics | None) -> str:
    failed = sum(row.error is not None for row in rows)
    trouble = f" {failed} of {len(rows)} points failed." if failed else ""
    if first is None or not best:
        return f"No point of {len(rows)} has both rates: there is no front.{trouble}"
    lowest = best[0]
    return (
        f"{rate_name(first.judge)} is lowest at {lowest.label}, with {percent(lowest.broken[0])}, refusing "
        f"{percent(lowest.refused[0])} of harmless prompts; {len(best)} of {len(found)} models are on the front.{trouble}"
    )


def _rows(rows: Sequence[SweepRow], keys: Mapping[str, str], best: set[str]) -> list[dict[str, Any]]:
    shown = []
    for label, folder, model in _models(rows):
        likelihood = model.target_logprob.mean
        shown.append(
            {
                "key": keys.get(label, ""),
                "label": label,
                "report": None if folder is None else f"{folder}/report/index.html",
                "broken": f"{percent(model.boa.asr)} {span(model.boa.interval)}",
                "refused": f"{percent(model.over_refusal.rate)} {span(model.over_refusal.interval)}",
                "logprob": "–" if likelihood is None else f"{likelihood:.2f}".replace("-", "−"),
                "front": label in best,
            }
        )
    return shown


def front_csv(rows: Sequence[SweepRow]) -> str:
    """One line a model: rates in [0, 1] with their intervals, empty where nothing was measured, and the judge."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = ("broken", "broken_low", "broken_high", "refused", "refused_low", "refused_high")
    writer.writerow(["point", "folder", *names, "on_front", "judge", "error"])
    found = front_points(rows)
    best = {point.label for point in undominated(found)}
    by_label = {point.label: point for point in found}
    first = next((row for row in rows if row.metrics is not None), None)
    lines = ([SweepRow(BASE_LABEL, "", first.metrics, None)] if first is not None else []) + list(rows)
    for row in lines:
        point = by_label.get(row.label)
        numbers = [""] * 6 if point is None else [*point.broken, *point.refused]
        judge = "" if row.metrics is None else f"{row.metrics.judge.name}{over_refusal_by(row.metrics)}"
        texts = [csv_text(text) for text in (row.label, row.folder, judge, row.error or "")]
        writer.writerow([*texts[:2], *numbers, row.label in best, *texts[2:]])
    return stream.getvalue()
