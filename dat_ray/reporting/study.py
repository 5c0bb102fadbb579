"""The page and the tables of a study: what differs between its arms, and whether that is more than chance."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dat_ray.config.loading import fingerprint
from dat_ray.config.study import BASE, Study
from dat_ray.data.shards import join, write_bytes
from dat_ray.evaluation.gap_results import TRAINING_PROMPTS
from dat_ray.evaluation.questions import INPAINTED_OVER_REFUSAL, OVER_REFUSAL
from dat_ray.evaluation.results import Metrics
from dat_ray.measures.intervals import NOTHING, Interval
from dat_ray.measures.ranks import rank_correlation
from dat_ray.reporting.charts import Figure, FrontPoint, front_figure
from dat_ray.reporting.collect import CollectedSuite
from dat_ray.reporting.figures import Dot, DotRow, dot_plot
from dat_ray.reporting.findings import not_attacked
from dat_ray.reporting.front_page import fronts_finding, fronts_table, fronts_view, write_fronts
from dat_ray.reporting.gap_page import gap_section
from dat_ray.reporting.gap_values import BY_TRAINING, GAP_NAMES, KIND_NAMES, WHOLE, GapView
from dat_ray.reporting.stage import template
from dat_ray.reporting.study_figures import (
    BOA,
    ArmDifference,
    StudyMeasure,
    cell_of,
    columns,
    difference_rows,
    primary_measure,
    study_measures,
    units_of,
    unjudged,
)
from dat_ray.reporting.study_fronts import StudyFronts
from dat_ray.reporting.study_gap import study_gap
from dat_ray.reporting.tables import Comparison, Measure, csv_text, gap_measures, write_tables
from dat_ray.reporting.terminal import TerminalTable, for_terminal
from dat_ray.reporting.words import (
    differing,
    judge_kind,
    judge_name,
    model_name,
    nats,
    over_refusal_by,
    p_value,
    percent,
    points,
    unread_by,
    with_span,
)

PAGE = "index.html"
UNJUDGED = "unjudged.csv"


def write_study(
    plan: Study,
    suites: Mapping[str, CollectedSuite],
    root: str,
    fronts: Sequence[StudyFronts] = (),
    notes: Sequence[str] = (),
) -> str:
    """Writes `index.html`, each suite's tables and those of the fronts into the study's folder; returns the page's path.

    Args:
        plan: the study.
        suites: as they were read.
        root: the folder.
        fronts: of its adapters along the trainings.
        notes: what a reader has to know besides, a sentence each.
    """
    measures = study_measures(plan, suites)
    for name, suite in suites.items():
        write_tables(_comparison(plan, name, suite, measures), join(root, "tables", name))
        write_bytes(join(root, "tables", name, UNJUDGED), _unjudged_csv(plan, suite).encode())
    for one in fronts:
        write_fronts(plan, one, root)
    where = join(root, PAGE)
    write_bytes(where, render_study(plan, suites, measures, fronts, notes).encode())
    return where


def _unjudged_csv(plan: Study, suite: CollectedSuite) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["measure", *(csv_text(arm) for arm in columns(plan))])
    for one in unjudged(plan, suite):
        writer.writerow([csv_text(one.key), *("" if share is None else share for share in one.shares.values())])
    return stream.getvalue()


def study_text(
    plan: Study, suites: Mapping[str, CollectedSuite], fronts: Sequence[StudyFronts] = ()
) -> list[TerminalTable | str]:
    """For a terminal: the tables of each suite, that of the fronts with its finding, and the finding."""
    measures = study_measures(plan, suites)
    tables: list[TerminalTable | str] = []
    for name, suite in suites.items():
        tables += for_terminal(_comparison(plan, name, suite, measures), f"Suite {name}")
    for one in fronts:
        tables += [*for_terminal(fronts_table(plan, one), "At equal over-refusal"), fronts_finding(plan, one)]
    return [*tables, headline(plan, suites, measures)]


def headline(plan: Study, suites: Mapping[str, CollectedSuite], measures: Sequence[StudyMeasure]) -> str:
    """One sentence about the primary measure: which arms differ from the reference."""
    primary = primary_measure(plan, measures)
    confidence = suites[primary.suite].metrics.confidence
    rate = percent(primary.rates[plan.reference].value)
    said = [_moved(model_name(arm), found, primary.rates[arm], confidence) for arm, found in primary.differences.items()]
    return f"{primary.name} ({primary.suite}): {plan.reference} {rate}; {differing(said)}."


def _moved(arm: str, found: ArmDifference, rate: Interval, confidence: float) -> tuple[bool, str]:
    """Whether an arm's difference is beyond chance, or was not measured, and the words for it."""
    if found.interval.value is None:
        return True, f"{arm} not measured"
    surely = found.beyond_chance(confidence)
    undone = not surely and replace(found, hangs_on_unread=False).beyond_chance(confidence)
    told = ", which answers without a verdict could undo" if undone else ""
    return surely or undone, f"{arm} {percent(rate.value)} ({points(found.interval.value)} points{told})"


def _comparison(plan: Study, name: str, suite: CollectedSuite, measures: Sequence[StudyMeasure]) -> Comparison:
    rows = tuple(
        Measure(one.key, one.name, "rate", tuple(cell_of(one, arm) for arm in columns(plan)))
        for one in measures
        if one.suite == name
    )
    metrics = suite.metrics
    rows += tuple(gap_measures(study_gap(plan, suite, units_of(plan)), columns(plan)))
    judge = metrics.judge
    said = f"Judged by {judge.name}, {judge_kind(judge)}{over_refusal_by(metrics)}."
    return Comparison(tuple(columns(plan)), rows, metrics.confidence, said, units_of(plan))


def render_study(
    plan: Study,
    suites: Mapping[str, CollectedSuite],
    measures: Sequence[StudyMeasure],
    fronts: Sequence[StudyFronts] = (),
    notes: Sequence[str] = (),
) -> str:
    """The page as one string."""
    first = next(iter(suites.values())).metrics
    recipe = plan.runs[0].recipe
    readers = over_refusal_by(*(suite.metrics for suite in suites.values()))
    return template(
        "study.html",
        name=plan.config.name,
        question=plan.config.question,
        target=recipe.target.model,
        headline=headline(plan, suites, measures),
        judge=f"{first.judge.name}, {judge_kind(first.judge)}{readers}",
        level=percent(first.confidence),
        units=units_of(plan),
        seeds=", ".join(map(str, plan.config.seeds)),
        reference=plan.reference,
        primary=primary_measure(plan, measures),
        arms=[_arm(plan, arm) for arm in plan.config.arms],
        suites=[_suite(plan, name, suite, measures) for name, suite in suites.items()],
        fronts=[fronts_view(plan, one) for one in fronts],
        notes=notes,
    )


def _arm(plan: Study, arm: str) -> dict[str, Any]:
    runs = [run for run in plan.runs if run.arm == arm]
    training = runs[0].recipe.training
    return {
        "name": arm,
        "about": plan.config.arms[arm].about,
        "updates": training.updates,
        "runs": [{"seed": run.seed, "folder": f"arms/{arm}/seed-{run.seed}", "mark": fingerprint(run.recipe)} for run in runs],
    }


def _suite(plan: Study, name: str, suite: CollectedSuite, measures: Sequence[StudyMeasure]) -> dict[str, Any]:
    own = [one for one in measures if one.suite == name]
    metrics = suite.metrics
    front = _front(plan, own, metrics)
    return {
        "name": name,
        "figures": [_rates_figure(plan, own, metrics), *([] if front is None else [front])],
        "columns": [model_name(arm) for arm in columns(plan)],
        "rows": [{"name": one.name, "cells": _rates(one, columns(plan))} for one in own],
        "differences": difference_rows(own, metrics.confidence),
        "unjudged": [{"name": one.name, "cells": list(map(percent, one.shares.values()))} for one in unjudged(plan, suite)],
        "gap": _gap(plan, name, suite, own),
        "errors": metrics.errors,
        "attempts": metrics.attempts,
        "unread": unread_by(metrics),
        "not_attacked": not_attacked(metrics),
    }


def _rates(measure: StudyMeasure, arms: Sequence[str]) -> list[str]:
    """An arm's rate, with the number of units where it could be judged on fewer than another."""
    most = max(measure.rates[arm].n for arm in arms)
    told = ("" if measure.rates[arm].n in (0, most) else f" of {measure.rates[arm].n}" for arm in arms)
    return [f"{with_span(measure.rates[arm])}{n}" for arm, n in zip(arms, told, strict=True)]


def _gap(plan: Study, name: str, suite: CollectedSuite, measures: Sequence[StudyMeasure]) -> dict[str, Any] | None:
    """The distribution gap, with what each arm's robustness is in the same table."""
    view = study_gap(plan, suite, units_of(plan))
    if view is None:
        return None
    shown = gap_section(view)
    robust = [one for one in measures if one.key in (BOA, plan.config.primary)]
    arms = columns(plan)
    rows = [{"name": one.name, "kind": "broken", "cells": [with_span(one.rates[arm]) for arm in arms]} for one in robust]
    told = _prediction(view, robust)
    asked = _asked_on(plan, name, suite)
    return shown | {"rows": [*shown["rows"], *rows], "sentences": [asked, *shown["sentences"], *told]}


def _asked_on(plan: Study, name: str, suite: CollectedSuite) -> str:
    """Whose prompts the base model's own sets are.

    They are of the run whose recipe the suite has (`pipeline.fresh.study_pairs`), which need not be among those compared,
    nor in a part that was merged.
    """
    run = f"{plan.reference}, seed {plan.suites[name].seed}"
    if any(row["model"] == BASE and row["prompt_set"] == TRAINING_PROMPTS for row in suite.risks):
        return f"The base model was asked on the prompts of {run}."
    return f"The base model has no prompts of its own here: these are of {run}, which is in none of the parts."


def _prediction(view: GapView, measures: Sequence[StudyMeasure]) -> list[str]:
    """Whether arms with a larger gap are broken more often; the base model, which was not trained on the prompts, is no arm."""
    kind, found = view.kinds[-1], []
    for key, one in itertools.product((WHOLE, BY_TRAINING), measures):
        gaps = {column.name: column.gaps.get(key, {}).get(kind, NOTHING).value for column in view.columns if column.name != BASE}
        pairs = [(gap, one.rates[arm].value) for arm, gap in gaps.items()]
        both = [(gap, rate) for gap, rate in pairs if gap is not None and rate is not None]
        order = rank_correlation([gap for gap, _ in both], [rate for _, rate in both])
        if order is not None:
            told = "" if order.p is None else f" (exact test over all orders, p = {p_value(order.p)})"
            found.append(
                f"{GAP_NAMES[key]} {KIND_NAMES[kind]} and {one.name} order {order.n} arms with a rank correlation of "
                f"{nats(order.value)}{told}."
            )
    return found


def _rates_figure(plan: Study, measures: Sequence[StudyMeasure], metrics: Metrics) -> Figure:
    rows = [
        DotRow(
            one.name,
            [
                Dot(index, model_name(arm), one.rates[arm].value, one.rates[arm].low, one.rates[arm].high)
                for index, arm in enumerate([BASE, *columns(plan)[:-1]])
            ],
        )
        for one in measures
    ]
    title = "Behaviors broken, and harmless prompts refused, by arm"
    readers = f"{judge_name(metrics.judge)}{over_refusal_by(metrics)}"
    caption = f"Judged by {readers}; bars are {percent(metrics.confidence)} intervals over {units_of(plan)}."
    return Figure(title, dot_plot(rows, title, "behaviors or prompts, %"), caption)


def _front(plan: Study, measures: Sequence[StudyMeasure], metrics: Metrics) -> Figure | None:
    """The primary measure, or that of any attack where the suite does not have it, against over-refusal."""
    rates = {one.key: one.rates for one in measures}
    broken = next((one for one in measures if one.key == plan.config.primary), None)
    broken = broken or next((one for one in measures if one.key == BOA), None)
    if broken is None or broken.key in (OVER_REFUSAL, INPAINTED_OVER_REFUSAL) or OVER_REFUSAL not in rates:
        return None
    found = []
    for arm in [BASE, *columns(plan)[:-1]]:
        triples = []
        for rate in (broken.rates[arm], rates[OVER_REFUSAL][arm]):
            if rate.value is not None and rate.low is not None and rate.high is not None:
                triples.append((rate.value, rate.low, rate.high))
        if len(triples) == 2:
            found.append(FrontPoint(model_name(arm), *triples))
    return front_figure(found, metrics, broken=f"{broken.name}, %", bars=f"intervals over {units_of(plan)}")
