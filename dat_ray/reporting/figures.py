"""Figures as SVG, drawn by hand: no library, no script, colors from the page's style sheet.

Every mark that tells two models apart differs in shape or dash as well as in color, and carries the model's name, so
that it survives grey print and color blindness. Text that reaches a figure is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

WIDTH = 440
# Of the plotting area of a curve, in SVG units.
PLOT_HEIGHT = 210.0
LABEL_HEIGHT, ROW_HEIGHT = 20, 20
# Models told apart by color, shape and dash; a ninth looks like the first again, and still has its name beside it.
STYLES = 8
# More of a name is left out; so wide is one of its characters, about.
NAME_CHARACTERS, NAME_STEP = 20, 6.6


@dataclass(frozen=True)
class Dot:
    """One estimate of a dot plot. `low` and `high` of None draw no interval, `value` of None says "not measured"."""

    series: int  # index of the model: color and shape
    label: str
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class DotRow:
    """A labeled group of estimates."""

    label: str
    dots: Sequence[Dot]


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        series: index of the model: color, dash and shape; None for a faint line behind the others.
        label: in the legend; empty for none.
        points: (x, y), x ascending.
        band: (x, low, high) of a shaded interval.
        marks: (x, y) of what the curve is made from, on it or not.
    """

    series: int | None
    label: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    marks: Sequence[tuple[float, float]] = ()

    @property
    def style(self) -> str:
        return "faint" if self.series is None else style(self.series)


@dataclass(frozen=True)
class Spot:
    """An estimate in two directions, each (value, low, high) in [0, 1].

    Attributes:
        series: color and shape.
        key: a letter or two beside the mark.
        label: what the mark's tooltip says.
        x: along.
        y: up.
    """

    series: int
    key: str
    label: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]


def style(series: int) -> str:
    """Class of a series in the style sheet."""
    return f"m{series % STYLES}"


@dataclass(frozen=True)
class Ruler:
    """What lies along a dot plot: its ticks, of which the first and the last are the ends, and how a number is written."""

    ticks: Sequence[float]
    shown: Callable[[float], str]


PERCENT = Ruler((0.0, 0.25, 0.5, 0.75, 1.0), lambda value: f"{100 * value:.0f}%")


def number_ruler(rows: Sequence[DotRow]) -> Ruler:
    """For numbers of any size, over all that these rows draw, with two digits."""
    dots = [dot for row in rows for dot in row.dots]
    values = [one for dot in dots for one in (dot.value, dot.low, dot.high) if one is not None] or [0.0]
    return Ruler(nice_ticks(min(values), max(values)), lambda value: f"{value:.2f}".replace("-", "−"))


def dot_plot(rows: Sequence[DotRow], title: str, axis: str, ruler: Ruler = PERCENT) -> Markup:
    """Estimates with their intervals, one group of dots a row, each dot beside its name.

    Args:
        rows: from top to bottom.
        title: accessible name of the figure.
        axis: what the horizontal axis measures, with its unit.
        ruler: along it; rates in [0, 1] where nothing else is said.
    """
    longest = max((len(dot.label) for row in rows for dot in row.dots), default=0)
    left, right, top = max(100.0, 14 + NAME_STEP * min(NAME_CHARACTERS, longest)), WIDTH - 60.0, 8.0
    height = top + sum(LABEL_HEIGHT + ROW_HEIGHT * len(row.dots) + 8 for row in rows)

    x = _scale(ruler.ticks[0], ruler.ticks[-1], left, right)
    parts = []
    for tick in ruler.ticks:
        parts.append(_segment("grid", x(tick), top, x(tick), height))
        parts.append(_text(x(tick), height + 16, ruler.shown(tick), "tick", "middle"))
    y = top
    for row in rows:
        parts.append(_text(0, y + 14, row.label, "group"))
        y += LABEL_HEIGHT
        for dot in row.dots:
            parts.append(_dot(dot, x, (left, y + ROW_HEIGHT / 2), ruler.shown))
            y += ROW_HEIGHT
        y += 8
    parts.append(_text((left + right) / 2, height + 36, axis, "axis", "middle"))
    return _svg(title, height + 42, parts)


def _dot(dot: Dot, x: Callable[[float], float], place: tuple[float, float], shown: Callable[[float], str]) -> str:
    left, y = place
    name = dot.label if len(dot.label) <= NAME_CHARACTERS else dot.label[: NAME_CHARACTERS - 1] + "…"
    parts = [_text(left - 10, y + 4, name, "name", "end")]
    if dot.value is None:
        return "".join([*parts, _text(left + 6, y + 4, "not measured", "tick")])
    said = f"{dot.label}: {shown(dot.value)}"
    if dot.low is not None and dot.high is not None:
        parts.append(_segment(f"interval {style(dot.series)}", x(dot.low), y, x(dot.high), y))
        for end in (dot.low, dot.high):
            parts.append(_segment(f"interval {style(dot.series)}", x(end), y - 4, x(end), y + 4))
        said += f" [{shown(dot.low)}, {shown(dot.high)}]"
    parts.append(mark(dot.series, x(dot.value), y))
    parts.append(_text(WIDTH - 2, y + 4, shown(dot.value), "value", "end"))
    return f"<g>{_title(said)}{''.join(parts)}</g>"


def line_plot(
    lines: Sequence[Line],
    title: str,
    x_axis: str,
    y_axis: str,
    *,
    zero: bool = False,
    share: bool = False,
    doubling: bool = False,
) -> Markup:
    """Curves over a common horizontal axis.

    Args:
        lines: at least one with a point.
        title: accessible name of the figure.
        x_axis: what is along the horizontal axis, with its unit.
        y_axis: what is measured, with its unit; written above the plot.
        zero: whether the vertical axis includes 0.
        share: whether the vertical axis is a share, from 0 to 100%.
        doubling: whether equal steps along are equal factors; x is then positive.
    """
    xs = [x for line in lines for x, _ in [*line.points, *line.marks]]
    ys = [y for line in lines for _, y in [*line.points, *line.marks]]
    ys += [y for line in lines for _, low, high in line.band for y in (low, high)]
    ys += [0.0] if zero else []
    ticks_y = [0, 0.25, 0.5, 0.75, 1.0] if share else nice_ticks(min(ys), max(ys))
    ticks_x = doubling_ticks(max(xs)) if doubling else nice_ticks(min(xs), max(xs), whole=True)
    left, right, top = 46.0, WIDTH - 14.0, 24.0
    bottom = top + PLOT_HEIGHT
    along: Callable[[float], float] = math.log2 if doubling else float
    linear = _scale(along(min(xs)), along(max(xs)), left, right)
    scale_y = _scale(ticks_y[0], ticks_y[-1], bottom, top)

    def scale_x(value: float) -> float:
        return linear(along(value))

    parts = [_text(2, 12, y_axis, "axis")]
    for tick in ticks_y:
        parts.append(_segment("grid", left, scale_y(tick), right, scale_y(tick)))
        parts.append(_text(left - 6, scale_y(tick) + 4, f"{100 * tick:.0f}%" if share else _number(tick), "tick", "end"))
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
        if line.series is not None:
            every = line.points if len(line.points) == 1 or doubling else ()
            parts += [mark(line.series, scale_x(x), scale_y(y)) for x, y in [*every, *line.marks]]
    parts.append(_text((left + right) / 2, bottom + 36, x_axis, "axis", "middle"))
    parts.extend(_legend([line for line in lines if line.label], left, bottom + 56))
    return _svg(title, bottom + 42 + 20 * sum(bool(line.label) for line in lines), parts)


def scatter(spots: Sequence[Spot], title: str, x_axis: str, y_axis: str, front: Sequence[Spot] = ()) -> Markup:
    """Estimates in two directions with both intervals.

    Args:
        spots: in the order of drawing.
        title: accessible name of the figure.
        x_axis: what is along, with its unit.
        y_axis: what is up, with its unit.
        front: spots that a line joins, in order.
    """
    left, right, top, bottom = 46.0, WIDTH - 30.0, 44.0, 364.0

    def x(value: float) -> float:
        return left + value * (right - left)

    def y(value: float) -> float:
        return bottom - value * (bottom - top)

    parts = [_text(2, 12, y_axis, "axis")]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_segment("grid", left, y(tick), right, y(tick)))
        parts.append(_segment("grid", x(tick), top, x(tick), bottom))
        parts.append(_text(left - 6, y(tick) + 4, f"{100 * tick:.0f}%", "tick", "end"))
        parts.append(_text(x(tick), bottom + 17, f"{100 * tick:.0f}%", "tick", "middle"))
    if len(front) > 1:
        where = " ".join(f"{x(spot.x[0]):.1f},{y(spot.y[0]):.1f}" for spot in front)
        parts.append(f'<polyline class="line faint" points="{where}"/>')
    taken = [(x(spot.x[0]), y(spot.y[0])) for spot in spots]
    for spot in spots:
        at = x(spot.x[0]), y(spot.y[0])
        key = next((place for place in _around(*at) if _is_free(place, taken)), _around(*at)[0])
        taken.append(key)
        said = f"{spot.key}, {spot.label}: {_triple(spot.x)} along, {_triple(spot.y)} up"
        kind = f"interval thin {style(spot.series)}"
        drawn = [
            _segment(kind, x(spot.x[1]), at[1], x(spot.x[2]), at[1]),
            _segment(kind, at[0], y(spot.y[1]), at[0], y(spot.y[2])),
            mark(spot.series, *at),
            _text(key[0], key[1] + 4, spot.key, "key", "middle"),
        ]
        parts.append(f"<g>{_title(said)}{''.join(drawn)}</g>")
    parts.append(_text((left + right) / 2, bottom + 36, x_axis, "axis", "middle"))
    return _svg(title, bottom + 42, parts)


def _around(x: float, y: float) -> list[tuple[float, float]]:
    near, far = 13.0, 24.0
    return [(x + sx * d, y + sy * d) for d in (near, far) for sx, sy in ((1, -1), (-1, -1), (1, 1), (-1, 1))]


def _is_free(place: tuple[float, float], taken: Sequence[tuple[float, float]]) -> bool:
    x, y = place
    inside = 54 < x < WIDTH - 8 and 24 < y < 356
    return inside and all(abs(x - a) > 11 or abs(y - b) > 11 for a, b in taken)


def _triple(values: tuple[float, float, float]) -> str:
    value, low, high = (100 * v for v in values)
    return f"{value:.0f}% [{low:.0f}%, {high:.0f}%]"


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


def doubling_ticks(high: float) -> list[float]:
    """1, 2, 4 ... up to `high`, thinned to at most eight."""
    powers = [2.0**k for k in range(math.floor(math.log2(high) + 1e-9) + 1)]
    return powers[:: math.ceil(len(powers) / 8)]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean over up to `window` values around each; shorter at both ends, so that the length stays."""
    half = window // 2
    spans = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(span) / len(span) for span in spans]


def mark(series: int, x: float, y: float) -> str:
    """The shape of a series, centered at (x, y)."""
    kind = f"mark {style(series)}"
    shape = series % STYLES
    if shape in (0, 4):
        return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{5 if shape == 0 else 4.5:g}"/>'
    if shape == 1:
        return f'<rect class="{kind}" x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"/>'
    corners = {
        2: ((0, -6), (5.5, 4.5), (-5.5, 4.5)),
        3: ((0, -6), (6, 0), (0, 6), (-6, 0)),
        5: ((0, 6), (5.5, -4.5), (-5.5, -4.5)),
        6: ((-5.5, 0), (-2.8, -5), (2.8, -5), (5.5, 0), (2.8, 5), (-2.8, 5)),
        7: ((-2, -6), (2, -6), (2, -2), (6, -2), (6, 2), (2, 2), (2, 6), (-2, 6), (-2, 2), (-6, 2), (-6, -2), (-2, -2)),
    }[shape]
    return f'<polygon class="{kind}" points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}"/>'


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    width = (high - low) or 1.0
    return lambda value: start + (value - low) / width * (end - start)


def _legend(lines: Sequence[Line], left: float, top: float) -> list[str]:
    parts = []
    for index, line in enumerate(lines):
        y = top + 20 * index
        parts.append(_segment(f"line {line.style}", left, y, left + 26, y))
        if line.series is not None:
            parts.append(mark(line.series, left + 13, y))
        parts.append(_text(left + 34, y + 4, line.label, "legend"))
    return parts


def _segment(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def _number(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


def _svg(title: str, height: float, parts: Sequence[str]) -> Markup:
    # The visible title stands above the figure, where it can wrap; this one is for those who do not see it.
    label = escape(title, quote=True)
    body = "".join(parts)
    return Markup(f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{label}">{_title(title)}{body}</svg>')
