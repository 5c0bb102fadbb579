"""Draws the demo's finding, `docs/demo-finding.svg`, from the recorded figures in `docs/demo-finding.json`.

    python docs/picture.py

The picture has a ground of its own, light or dark as the reader's system is, so that it can be read on a page of either
kind. Before and after differ in form as well as in color: a hollow ring and a full dot.
"""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
FIGURES, PICTURE = FOLDER / "demo-finding.json", FOLDER / "demo-finding.svg"
WIDTH, TOP, ROW, LEFT, RIGHT = 780, 92, 46, 220, 120
STYLE = """
  .ground { fill: #ffffff; stroke: #d0d7de }
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600; font-size: 15px }
  .small { font-size: 12px; fill: #59636e }
  .grid { stroke: #d8dee4 }
  .before { stroke: #8250df; fill: none }
  .after { stroke: #0969da; fill: #0969da }
  .price { stroke: #bc4c00; fill: #bc4c00 }
  line.before, line.after, line.price { stroke-width: 3; stroke-linecap: round; opacity: 0.55 }
  circle { stroke-width: 2.5 }
  circle.before { fill: #ffffff }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117; stroke: #3d444d }
    text { fill: #f0f6fc }
    .small { fill: #9198a1 }
    .grid { stroke: #3d444d }
    .before { stroke: #ab7df8 }
    .after { stroke: #4493f8; fill: #4493f8 }
    .price { stroke: #db6d28; fill: #db6d28 }
    circle.before { fill: #0d1117 }
  }
"""


def across(percent: float) -> float:
    """Where a rate lies, in pixels from the left."""
    return LEFT + percent / 100 * (WIDTH - LEFT - RIGHT)


def mark(figures: list[float], y: float, kind: str) -> list[str]:
    """An interval and its rate."""
    rate, low, high = figures
    return [
        f'<line class="{kind}" x1="{across(low):.1f}" y1="{y:g}" x2="{across(high):.1f}" y2="{y:g}"/>',
        f'<circle class="{kind}" cx="{across(rate):.1f}" cy="{y:g}" r="5.5"/>',
    ]


def opening(width: int, height: int, spoken: str, title: str, subtitle: str) -> list[str]:
    """The beginning of a picture: its size, what is read aloud, styles, ground and title."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(spoken)}">',
        f"<style>{STYLE}</style>",
        f'<rect class="ground" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>',
        f'<text class="title" x="20" y="30">{escape(title)}</text>',
        f'<text class="small" x="20" y="50">{escape(subtitle)}</text>',
    ]


def draw(figures: dict[str, Any]) -> str:
    """The picture as SVG.

    Args:
        figures: `title`, `subtitle`, `judge`, and `rows` with `label`, `before` and `after` as [rate, low, high] in percent.
    """
    rows = figures["rows"]
    bottom = TOP + ROW * len(rows)
    height = bottom + 76
    spoken = "; ".join(f"{row['label']}: {row['before'][0]}% before, {row['after'][0]}% after" for row in rows)
    parts = opening(WIDTH, height, spoken, figures["title"], figures["subtitle"])
    for tick in range(0, 101, 25):
        x = across(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP - 14}" x2="{x:.1f}" y2="{bottom - 8}"/>')
        parts.append(f'<text class="small" x="{x:.1f}" y="{bottom + 10}" text-anchor="middle">{tick}%</text>')
    for index, row in enumerate(rows):
        y = TOP + ROW * index + 8
        parts.append(f'<text x="{LEFT - 16}" y="{y + 5}" text-anchor="end">{escape(row["label"])}</text>')
        parts += mark(row["before"], y - 6, "before") + mark(row["after"], y + 8, "price" if row.get("price") else "after")
        parts.append(f'<text x="{WIDTH - 20}" y="{y + 5}" text-anchor="end">{row["before"][0]} → {row["after"][0]}%</text>')
    foot = bottom + 36
    parts += [
        f'<circle class="before" cx="27" cy="{foot - 4}" r="5.5"/>',
        f'<text class="small" x="39" y="{foot}">before</text>',
        f'<circle class="after" cx="97" cy="{foot - 4}" r="5.5"/>',
        f'<text class="small" x="109" y="{foot}">after</text>',
        f'<text class="small" x="20" y="{foot + 22}">{escape(figures["judge"])}</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PICTURE.write_text(draw(json.loads(FIGURES.read_text(encoding="utf-8"))), encoding="utf-8")
