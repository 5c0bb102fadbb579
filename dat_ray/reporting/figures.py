"""Figures as SVG, drawn by hand: no library, no script, colors from the page's style sheet.

Every mark that tells two models apart differs in shape or dash as well as in color, so that it survives grey print.
Text that reaches a figure is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

WIDTH = 440
LABEL_HEIGHT, ROW_HEIGHT = 20, 22


@dataclass(frozen=True)
class Dot:
    """One estimate of a dot plot. `low` and `high` of None draw no interval, `value` of None draws nothing."""

    series: str  # "base" or "adapted": the class that gives color, and the shape
    label: str
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Row:
    """A labeled group of estimates."""

    label: str
    dots: Sequence[Dot]


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        style: class that gives color and dash: "base", "adapted" or "plain".
        label: shown at the curve's end; empty for none.
        points: (x, y), x ascending.
        band: (x, low, high) of a shaded interval.
    """

    style: str
    label: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()


def dot_plot(rows: Sequence[Row], title: str, axis: str) -> Markup:
    """Rates in [0, 1] with their intervals, one group of dots a row.

    Args:
        rows: from top to bottom.
        title: accessible name of the figure.
        axis: what the horizontal axis measures, with its unit.
    """
    left, right, top = 16.0, WIDTH - 70.0, 8.0
    height = top + sum(LABEL_HEIGHT + ROW_HEIGHT * len(row.dots) + 8 for row in rows)

    def x(value: float) -> float:
        return left + value * (right - left)

    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_segment("grid", x(tick), top, x(tick), height))
        parts.append(_text(x(tick), height + 16, f"{100 * tick:.0f}%", "tick", "middle"))
    y = top
    for row in rows:
        parts.append(_text(left, y + 14, row.label, "group"))
        y += LABEL_HEIGHT
        for dot in row.dots:
            middle = y + ROW_HEIGHT / 2
            if dot.low is not None and dot.high is not None:
                parts.append(_segment(f"interval {dot.series}", x(dot.low), middle, x(dot.high), middle))
                for end in (dot.low, dot.high):
                    parts.append(_segment(f"interval {dot.series}", x(end), middle - 4, x(end), middle + 4))
            if dot.value is not None:
                parts.append(_mark(dot.series, x(dot.value), middle))
                parts.append(_text(WIDTH - 2, middle + 4, f"{100 * dot.value:.0f}%", f"value {dot.series}", "end"))
            y += ROW_HEIGHT
        y += 8
    parts.append(_text((left + right) / 2, height + 36, axis, "axis", "middle"))
    return _svg(title, height + 42, parts)


def line_plot(lines: Sequence[Line], title: str, x_axis: str, y_axis: str, *, height: float = 210, zero: bool = False) -> Markup:
    """Curves over a common horizontal axis.

    Args:
        lines: at least one with a point.
        title: accessible name of the figure.
        x_axis: what is along the horizontal axis, with its unit.
        y_axis: what is measured, with its unit; written above the plot.
        height: of the plotting area, in SVG units.
        zero: whether the vertical axis includes 0.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    ys += [y for line in lines for _, low, high in line.band for y in (low, high)]
    ticks_y = nice_ticks(min([*ys, 0.0]) if zero else min(ys), max([*ys, 0.0]) if zero else max(ys))
    ticks_x = nice_ticks(min(xs), max(xs), whole=True)
    left, right, top = 46.0, WIDTH - 14.0, 24.0
    bottom = top + height
    scale_x = _scale(min(xs), max(xs), left, right)
    scale_y = _scale(ticks_y[0], ticks_y[-1], bottom, top)
    parts = [_text(2, 12, y_axis, "axis")]
    for tick in ticks_y:
        parts.append(_segment("grid", left, scale_y(tick), right, scale_y(tick)))
        parts.append(_text(left - 6, scale_y(tick) + 4, _number(tick), "tick", "end"))
    for tick in ticks_x:
        if min(xs) <= tick <= max(xs):
            parts.append(_text(scale_x(tick), bottom + 17, _number(tick), "tick", "middle"))
    for line in lines:
        if line.band:
            edge = [(x, low) for x, low, _ in line.band] + [(x, high) for x, _, high in reversed(line.band)]
            where = " ".join(f"{scale_x(x):.1f},{scale_y(y):.1f}" for x, y in edge)
            parts.append(f'<polygon class="band {line.style}" points="{where}"/>')
    for line in lines:
        where = " ".join(f"{scale_x(x):.1f},{scale_y(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="line {line.style}" points="{where}"/>')
        if len(line.points) == 1:
            parts.append(_mark(line.style, scale_x(line.points[0][0]), scale_y(line.points[0][1])))
    parts.append(_text((left + right) / 2, bottom + 36, x_axis, "axis", "middle"))
    parts.extend(_legend([line for line in lines if line.label], left, bottom + 56))
    return _svg(title, bottom + 42 + 20 * sum(bool(line.label) for line in lines), parts)


def nice_ticks(low: float, high: float, count: int = 4, *, whole: bool = False) -> list[float]:
    """Round numbers that span [low, high]: steps of 1, 2 or 5 times a power of ten.

    Args:
        low: smallest value to cover.
        high: largest value to cover; may equal `low`.
        count: steps wanted, roughly.
        whole: no step below 1.
    """
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    if whole:
        step = max(step, 1.0)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean over up to `window` values around each; shorter at both ends, so that the length stays."""
    half = window // 2
    spans = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(span) / len(span) for span in spans]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    width = (high - low) or 1.0
    return lambda value: start + (value - low) / width * (end - start)


def _legend(lines: Sequence[Line], left: float, top: float) -> list[str]:
    parts = []
    for index, line in enumerate(lines):
        y = top + 20 * index
        parts.append(_segment(f"line {line.style}", left, y, left + 26, y))
        parts.append(_text(left + 32, y + 4, line.label, "legend"))
    return parts


def _mark(series: str, x: float, y: float) -> str:
    if series == "base":
        return f'<circle class="mark base" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    return f'<rect class="mark {series}" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>'


def _segment(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


def _svg(title: str, height: float, parts: Sequence[str]) -> Markup:
    # The title attribute of accessibility only: a visible one stands above the figure, where it can wrap.
    body = "".join(parts)
    return Markup(f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}">{body}</svg>')
