"""Which figures the report has, what each shows, and the finding that is its title."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import methodcaller
from typing import Any

from markupsafe import Markup

from dat_ray.evaluation.estimates import JudgeFacts
from dat_ray.evaluation.judge_results import Calibration, CalibrationFigures
from dat_ray.evaluation.questions import OVER_REFUSAL
from dat_ray.evaluation.results import Metrics, ModelMetrics
from dat_ray.measures.intervals import Interval
from dat_ray.reporting.categories import Attempts, Categories, broken_by_category, refused_by_category
from dat_ray.reporting.figures import Dot, DotRow, Line, Spot, dot_plot, line_plot, running_mean, scatter
from dat_ray.reporting.findings import attacked_otherwise, pair, subject
from dat_ray.reporting.words import (
    attack_name,
    judge_name,
    model_name,
    over_refusal_by,
    percent,
    points,
    refusal_judge_name,
    refusal_reader,
    words,
)

# Share of the updates at the start and at the end over which attack curves are averaged.
EDGE = 0.2
# Updates averaged in a smoothed curve, as a share of all.
SMOOTHING = 0.1
# Attacks named in the title of a figure that has more.
TITLE_ATTACKS = 3
# (value, low, high) of a rate.
Triple = tuple[float, float, float]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Figure:
    """A figure with a title that says the finding, and a caption that says what is drawn."""

    title: str
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Term:
    """A loss term: its key in `metrics.jsonl`, its name, its unit, and how to read it."""

    key: str
    name: str
    unit: str
    meaning: str


# Of a training those that its recipe has are drawn.
TERMS = (
    Term("away", "Log p of the harmful target", "log p(target), nats per token", "under attack; training pushes it down"),
    Term("toward", "Cross-entropy of the refusal", "CE(refusal), nats per token", "under attack; training pulls it down"),
    Term("retain_kl", "KL to the base model", "KL(base ‖ fine-tuned), nats per token", "on harmless data; 0 means unchanged"),
    Term("retain_reverse_kl", "Reverse KL to the base model", "KL(fine-tuned ‖ base), nats per token", "on harmless data"),
    Term("retain_ce", "Cross-entropy of harmless answers", "CE, nats per token", "on harmless data"),
)


@dataclass(frozen=True)
class FrontPoint:
    """One model of a front: rates as (value, low, high) in [0, 1].

    Attributes:
        label: what tells it from the others.
        broken: behaviors broken by any attack.
        refused: harmless prompts refused.
    """

    label: str
    broken: Triple
    refused: Triple

    @property
    def complied(self) -> Triple:
        value, low, high = self.refused
        return 1 - value, 1 - high, 1 - low


def asr_figure(metrics: Metrics) -> Figure:
    """Attack success by attack, and of any attack."""
    attacks = metrics.attacks
    rows = [DotRow(attack_name(attack), _dots(metrics, methodcaller("rate_of", attack))) for attack in attacks]
    if len(attacks) > 1:
        rows.append(DotRow("Any of them (best of attacks)", _dots(metrics, lambda model: model.boa.interval)))
    changes = {attack: pair(metrics, "asr", attack) for attack in attacks}
    falls = {attack: found.difference for attack, found in changes.items() if found and found.difference is not None}
    title = "Attack success by attack"
    about = subject(metrics)
    if falls and about is not None:
        named = sorted(falls, key=lambda attack: falls[attack])[:TITLE_ATTACKS]
        parts = [f"{attack_name(attack).lower()} {points(falls[attack])} points" for attack in named]
        more = f", {len(falls) - len(named)} more below" if len(falls) > len(named) else ""
        title = f"Change from {model_name(metrics.first)} to {model_name(about)}: {', '.join(parts)}{more}"
    caption = (
        f"Share of held-out behaviors with at least one answer judged harmful by {judge_name(metrics.judge)}; "
        f"bars are {percent(metrics.confidence)} Wilson intervals over behaviors."
    )
    said = [caption, *attacked_otherwise(metrics)]
    return Figure(title, dot_plot(rows, title, "behaviors broken, % of those judged"), " ".join(said))


def refusal_figure(metrics: Metrics) -> Figure | None:
    """Over-refusal of every model; None where nothing was measured."""
    blocks = {name: block.over_refusal for name, block in metrics.models.items()}
    measured = {name: block for name, block in blocks.items() if block.rate is not None}
    if not measured:
        return None
    change = pair(metrics, OVER_REFUSAL)
    moved = "" if change is None else f" ({points(change.difference)} points)"
    rates = ", ".join(f"{model_name(name)} {percent(block.rate)}" for name, block in measured.items())
    title = f"Refused harmless prompts: {rates}{moved}"
    rows = [DotRow("Harmless look-alikes", _dots(metrics, lambda model: model.over_refusal.interval))]
    unread = ", ".join(f"{block.unparsed} ({model_name(name)})" for name, block in blocks.items())
    n = max(block.n for block in measured.values())
    reader = refusal_judge_name(refusal_reader(metrics) or metrics.judge)
    caption = (
        f"{n} prompts that look harmful and are not, judged by {reader}; {percent(metrics.confidence)} "
        f"Wilson intervals. Unreadable answers, left out: {unread}."
    )
    return Figure(title, dot_plot(rows, title, "harmless prompts refused, %"), caption)


def category_figure(metrics: Metrics, attempts: Attempts, categories: Categories) -> Figure | None:
    """Success of any attack by category of behavior; None where there are fewer than two categories."""
    caption = "Behaviors broken by any attack, by category, with the number of behaviors"
    found = _by_category(
        metrics, attempts, categories, broken_by_category, "Weakest category", caption, "behaviors broken, % of those judged"
    )
    return None if found is None else replace(found, caption=" ".join([found.caption, *attacked_otherwise(metrics)]))


def refusal_category_figure(metrics: Metrics, attempts: Attempts, categories: Categories) -> Figure | None:
    """Refusals of harmless look-alikes by what makes them look harmful; None where there are fewer than two categories."""
    caption = "Harmless look-alikes refused, by what makes them look harmful, with the number of prompts"
    return _by_category(
        metrics, attempts, categories, refused_by_category, "Most refused look-alikes", caption, "harmless prompts refused, %"
    )


def _by_category(
    metrics: Metrics,
    attempts: Attempts,
    categories: Categories,
    count: Callable[[Attempts, Categories, float], dict[str, Interval]],
    worst: str,
    caption: str,
    axis: str,
) -> Figure | None:
    found = {
        name: count([row for row in attempts if row["model"] == name], categories, metrics.confidence) for name in metrics.models
    }
    about = subject(metrics) or metrics.first
    order = sorted(found[about], key=lambda category: (-(found[about][category].value or 0.0), category))
    if len(order) < 2:
        return None
    rows = [
        DotRow(
            f"{words(category)} ({found[about][category].n})",
            [_dot(index, name, found[name].get(category)) for index, name in enumerate(found)],
        )
        for category in order
    ]
    title = f"{worst} of the {model_name(about)} model: {words(order[0])}, {percent(found[about][order[0]].value)}"
    level = percent(metrics.confidence)
    caption += f"; {level} Wilson intervals. Where they overlap, an order of categories is not shown by these data."
    return Figure(title, dot_plot(rows, title, axis), caption)


def attempts_figures(metrics: Metrics) -> list[Figure]:
    """One figure for each attack with several attempts a behavior: success against their number."""
    figures = []
    for attack in metrics.attacks:
        lines, said, in_order = [], [], False
        for index, (name, model) in enumerate(metrics.models.items()):
            found = model.attacks.get(attack)
            if found is None:
                continue
            # In older files a point is of those behaviors alone that have so many judged attempts: fewer, and other ones.
            points = [point for point in found.curve if point.n_behaviors == found.n_behaviors]
            curve = known_points((point.attempts, point.interval) for point in points)
            if len(curve) < 2:
                continue
            in_order = not found.exchangeable
            middle = [(x, rate) for x, (rate, _, _) in curve]
            band = [(x, low, high) for x, (_, low, high) in curve]
            lines.append(Line(index, model_name(name), middle, band))
            if name in (metrics.first, subject(metrics)):
                (_, once), (most, often) = curve[0], curve[-1]
                said.append(f"{model_name(name)} {percent(once[0])} with 1, {percent(often[0])} with {most:.0f}")
        if lines:
            title = f"{attack_name(attack)}, attempts: {'; '.join(said)}"
            drawn = "in k of the judged attempts, on average over all choices, or in all of them where they are fewer"
            counted = "within the first k attempts" if in_order else drawn
            level = percent(metrics.confidence)
            caption = (
                f"Behaviors with a harmful answer {counted}, of all with a judged attempt; bands are {level} intervals over "
                "behaviors. Steps along double the attempts."
            )
            svg = line_plot(lines, title, "attempts for each behavior", "behaviors broken", share=True, doubling=True)
            figures.append(Figure(title, svg, caption))
    return figures


def budget_figures(metrics: Metrics) -> list[Figure]:
    """For each model that the finding speaks of: success of every attack against the model calls that it may cost."""
    figures = []
    for name in dict.fromkeys([metrics.first, subject(metrics) or metrics.first]):
        lines = []
        for index, (attack, found) in enumerate(metrics.models[name].attacks.items()):
            curve = known_points((point.budget, point.interval) for point in found.budget.model_calls)
            if curve and curve[0][0] > 0:
                lines.append(Line(index, attack_name(attack), [(x, rate) for x, (rate, _, _) in curve]))
        if not lines:
            continue
        best = max(lines, key=lambda line: line.points[-1][1])
        most = percent(best.points[-1][1])
        title = f"Against the attacker's budget, {model_name(name)}: {best.label} ends highest, at {most}"
        caption = (
            f"Behaviors of the {model_name(name)} model broken within so many model calls each: prompts asked, passes of "
            "samplers and searches, an attacker's answers; the judge's are not counted. Intervals are in the table."
        )
        svg = line_plot(lines, title, "model calls for each behavior", "behaviors broken", share=True, doubling=True)
        figures.append(Figure(title, svg, caption))
    return figures


def known_points(points: Iterable[tuple[int, Interval]]) -> list[tuple[float, Triple]]:
    """Points of a curve that were measured, as (x, (value, low, high))."""
    found = [(float(x), triple(interval)) for x, interval in points]
    return [(x, one) for x, one in found if one is not None]


def triple(found: Interval) -> Triple | None:
    """(value, low, high); None where any of them is not known."""
    if found.value is None or found.low is None or found.high is None:
        return None
    return found.value, found.low, found.high


def front_point(label: str, model: ModelMetrics) -> FrontPoint | None:
    """A model's place; None where one of the rates was not measured."""
    broken, refused = triple(model.boa.interval), triple(model.over_refusal.interval)
    return None if broken is None or refused is None else FrontPoint(label, broken, refused)


def front_of(metrics: Metrics) -> list[FrontPoint]:
    """The models of a suite for which both rates were measured."""
    found = [front_point(model_name(name), model) for name, model in metrics.models.items()]
    return [point for point in found if point is not None]


def undominated(found: Sequence[FrontPoint]) -> list[FrontPoint]:
    """Points that no other beats in one rate without losing in the other, from the least broken to the most."""

    def beaten(one: FrontPoint) -> bool:
        mine = (one.broken[0], one.refused[0])
        others = [(other.broken[0], other.refused[0]) for other in found]
        return any(a <= mine[0] and b <= mine[1] and (a, b) != mine for a, b in others)

    return sorted((one for one in found if not beaten(one)), key=lambda one: (one.broken[0], one.refused[0]))


def front_figure(
    found: Sequence[FrontPoint],
    metrics: Metrics,
    *,
    broken: str = "behaviors broken by any attack, %",
    bars: str = "Wilson intervals",
) -> Figure | None:
    """Attack success, called `broken`, against compliance with harmless prompts, by the judges of `metrics`; None for fewer than
    three models. `bars` are what the points have."""
    if len(found) < 3:
        return None
    best = undominated(found)
    keys = {id(one): LETTERS[index % 26] + str(index // 26 or "") for index, one in enumerate(found)}
    spots = {id(one): Spot(1 if one in best else 0, keys[id(one)], one.label, one.complied, one.broken) for one in found}
    proxy = "proxy " if metrics.judge.is_proxy else ""
    title = f"{len(best)} of {len(found)} are on the front: less {proxy}attack success only for more refusals"
    named = "; ".join(f"{keys[id(one)]} {one.label}" for one in found)
    caption = (
        f"{named}. Filled squares, joined, are not beaten in both directions; bars are {percent(metrics.confidence)} {bars}, "
        f"judge {judge_name(metrics.judge)}{over_refusal_by(metrics)}. Better is down and to the right; where bars "
        "overlap, the order may be chance."
    )
    joined = [spots[id(one)] for one in best]
    svg = scatter(list(spots.values()), title, "harmless prompts answered, %", broken, joined)
    return Figure(title, svg, caption)


def calibration_figure(judge: JudgeFacts, found: Calibration | None) -> Figure | None:
    """Agreement of a judge with people, by source; None where nobody measured it."""
    if found is None or found.accuracy.value is None:
        return None
    kappa = "" if found.kappa is None else f", kappa {found.kappa:.2f}"
    sources: dict[str, CalibrationFigures] = {**found.sources, "All": found} if len(found.sources) > 1 else {"All": found}
    rows = [
        DotRow(f"{words(name)} ({one.n})", [Dot(1, "agreement", one.accuracy.value, one.accuracy.low, one.accuracy.high)])
        for name, one in sources.items()
    ]
    title = f"{judge_name(judge)} agrees with people on {percent(found.accuracy.value)} of {found.n} labeled answers{kappa}"
    yes, no = found.confusion.people_harmful, found.confusion.people_not_harmful
    caption = (
        f"Of {yes.total} answers that people called harmful or compliant it called {yes.harmful} so; of the other "
        f"{no.total} it called {no.not_harmful} harmless or refused. {percent(found.confidence)} intervals over "
        "prompts. Measured on other answers than this run's."
    )
    return Figure(title, dot_plot(rows, title, "answers on which judge and people agree, %"), caption)


def loss_figures(training: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """One figure a loss term, so that each keeps its own unit and scale."""
    found = []
    for term in TERMS:
        values = [(float(row["update"]), float(row[term.key])) for row in training if row.get(term.key) is not None]
        if not values:
            continue
        window = max(1, round(SMOOTHING * len(values)))
        smooth = running_mean([value for _, value in values], window)
        edge = max(1, round(EDGE * len(values)))
        first, last = (sum(part) / len(part) for part in ([v for _, v in values[:edge]], [v for _, v in values[-edge:]]))
        title = f"{term.name}: {_signed(first)} at first, {_signed(last)} at the end"
        lines = [
            Line(None, "", values),
            Line(1, f"running mean over {window} updates", list(zip([x for x, _ in values], smooth, strict=True))),
        ]
        svg = line_plot(lines, title, "update", term.unit)
        caption = f"Mean over an update's rows, {term.meaning}. The title compares the first and last {percent(EDGE)} of updates."
        found.append(Figure(title, svg, caption))
    return found


def rounds_figure(rounds: Sequence[tuple[int, Interval]], judge: str, confidence: float) -> Figure | None:
    """How often new prompts break the model that each round begins with; None for fewer than two rounds."""
    known = known_points(rounds)
    if len(known) < 2:
        return None
    (_, (first, _, _)), (number, (last, _, _)) = known[0], known[-1]
    broken = f"{percent(first)} break the model that round 1 begins with, {percent(last)} that of round {number:.0f}"
    title = f"Of new prompts {broken}"
    line = Line(1, "", [(x, rate[0]) for x, rate in known], [(x, low, high) for x, (_, low, high) in known])
    caption = (
        f"Share of the answers to each round's candidates that {judge} calls harmful; the base model answers those of round 1, "
        f"the model of the round before the others. {percent(confidence)} intervals over behaviors."
    )
    return Figure(title, line_plot([line], title, "round", "answers judged harmful", share=True), caption)


def attack_figure(training: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Harmful cross-entropy along the attack's iterates, early against late in training."""
    traces = [row["attack_ce"] for row in training if len(row.get("attack_ce") or ()) > 1]
    if not traces:
        return None
    edge = max(1, round(EDGE * len(traces)))
    early, late = _mean_trace(0, traces[:edge], f"first {edge} updates"), _mean_trace(1, traces[-edge:], f"last {edge} updates")
    title = (
        f"The attack lowers harmful cross-entropy by {early.points[0][1] - early.points[-1][1]:.2f} nats early, "
        f"by {late.points[0][1] - late.points[-1][1]:.2f} late in training"
    )
    svg = line_plot([early, late], title, "attack step", "CE(harmful target), nats per token", zero=True)
    caption = "Mean over updates, before each step of the inner attack and after the last; bands span the middle 80% of updates."
    return Figure(title, svg, caption)


def _mean_trace(series: int, traces: Sequence[Sequence[float]], label: str) -> Line:
    means, band = [], []
    for step, values in enumerate(zip(*traces, strict=True)):
        ordered = sorted(values)
        tail = int(0.1 * len(ordered))
        means.append((float(step), sum(ordered) / len(ordered)))
        band.append((float(step), ordered[tail], ordered[-1 - tail]))
    return Line(series, label, means, band)


def _dots(metrics: Metrics, of: Callable[[ModelMetrics], Interval | None]) -> list[Dot]:
    return [_dot(index, name, of(model)) for index, (name, model) in enumerate(metrics.models.items())]


def _dot(index: int, name: str, found: Interval | None) -> Dot:
    if found is None:
        return Dot(index, model_name(name), None, None, None)
    return Dot(index, model_name(name), found.value, found.low, found.high)


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")
