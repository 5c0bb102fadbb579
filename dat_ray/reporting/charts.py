"""Which figures the report has, what each shows, and the finding that is its title."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from dat_ray.evaluation.attacks import OVER_REFUSAL
from dat_ray.reporting.figures import Dot, Line, Row, dot_plot, line_plot, running_mean
from dat_ray.reporting.findings import Tree, pair, percent, points

ATTACK_NAMES = {"direct": "Direct request", "inpainting": "In-painted prompts"}
# Share of the updates at the start and at the end over which attack curves are averaged.
EDGE = 0.2
# Updates averaged in a smoothed curve, as a share of all.
SMOOTHING = 0.1


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


TERMS = (
    Term("away", "Log p of the harmful target", "log p(target), nats per token", "under attack; training pushes it down"),
    Term("toward", "Cross-entropy of the refusal", "CE(refusal), nats per token", "under attack; training pulls it down"),
    Term("retain_kl", "KL to the base model", "KL(base ‖ fine-tuned), nats per token", "on harmless data; 0 means unchanged"),
)


def attack_name(attack: str) -> str:
    """An attack's name for people."""
    return ATTACK_NAMES.get(attack, attack)


def asr_figure(metrics: Tree) -> Figure:
    """Attack success by attack, and of any attack."""
    base, adapted = metrics["models"]["base"], metrics["models"]["adapted"]
    rows = [Row(attack_name(attack), _two(block, adapted["attacks"][attack], "asr")) for attack, block in base["attacks"].items()]
    rows.append(Row("Any of them (best of attacks)", _two(base["boa"], adapted["boa"], "asr")))
    falls = {attack: found["difference"] for attack in base["attacks"] if (found := pair(metrics, "asr", attack)) is not None}
    title = "Attack success was not measured"
    if falls:
        parts = [f"{attack_name(attack).lower()} {points(change)} points" for attack, change in falls.items()]
        title = "Change after fine-tuning: " + ", ".join(parts)
    level = percent(metrics["confidence"])
    caption = (
        f"Share of held-out behaviors with at least one answer judged harmful by {metrics['judge']['name']}; "
        f"bars are {level} Wilson intervals over behaviors."
    )
    return Figure(title, dot_plot(rows, title, "behaviors broken, % of those judged"), caption)


def refusal_figure(metrics: Tree) -> Figure | None:
    """Over-refusal before and after; None without harmless prompts."""
    base, adapted = (metrics["models"][name]["over_refusal"] for name in ("base", "adapted"))
    if base["rate"] is None or adapted["rate"] is None:
        return None
    change = pair(metrics, OVER_REFUSAL)
    moved = "" if change is None else f", {points(change['difference'])} points"
    title = f"Refused harmless prompts: {percent(base['rate'])} before, {percent(adapted['rate'])} after{moved}"
    rows = [Row("Harmless look-alikes", _two(base, adapted, "rate"))]
    unread = f"Unreadable answers, left out: {base['unparsed']} before, {adapted['unparsed']} after."
    level = percent(metrics["confidence"])
    caption = f"{adapted['n']} prompts that look harmful and are not, same judge; {level} Wilson intervals. {unread}"
    return Figure(title, dot_plot(rows, title, "harmless prompts refused, %"), caption)


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
            Line("faint", "", values),
            Line("adapted", f"running mean over {window} updates", list(zip([x for x, _ in values], smooth, strict=True))),
        ]
        svg = line_plot(lines, title, "update", term.unit)
        caption = f"Mean over an update's rows, {term.meaning}. The title compares the first and last {percent(EDGE)} of updates."
        found.append(Figure(title, svg, caption))
    return found


def attack_figure(training: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Harmful cross-entropy along the attack's iterates, early against late in training."""
    traces = [row["attack_ce"] for row in training if len(row.get("attack_ce") or ()) > 1]
    if not traces:
        return None
    edge = max(1, round(EDGE * len(traces)))
    early, late = _mean_trace(traces[:edge]), _mean_trace(traces[-edge:])
    title = (
        f"The attack lowers harmful cross-entropy by {early.points[0][1] - early.points[-1][1]:.2f} nats early, "
        f"by {late.points[0][1] - late.points[-1][1]:.2f} late in training"
    )
    lines = [
        Line("base", f"first {edge} updates", early.points, early.band),
        Line("adapted", f"last {edge} updates", late.points, late.band),
    ]
    svg = line_plot(lines, title, "attack step", "CE(harmful target), nats per token", zero=True)
    caption = "Mean over updates, before each step of the inner attack and after the last; bands span the middle 80% of updates."
    return Figure(title, svg, caption)


def _mean_trace(traces: Sequence[Sequence[float]]) -> Line:
    means, band = [], []
    for step, values in enumerate(zip(*traces, strict=True)):
        ordered = sorted(values)
        tail = int(0.1 * len(ordered))
        means.append((float(step), sum(ordered) / len(ordered)))
        band.append((float(step), ordered[tail], ordered[-1 - tail]))
    return Line("", "", means, band)


def _two(before: Tree, after: Tree, key: str) -> list[Dot]:
    return [
        Dot("base", "base", before[key], before["low"], before["high"]),
        Dot("adapted", "fine-tuned", after[key], after["low"], after["high"]),
    ]


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")
