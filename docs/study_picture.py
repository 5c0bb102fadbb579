"""Draws the finding of a study, `docs/study-finding.svg`, from the tables that `dat study` or `--merge` wrote.

    python docs/study_picture.py STUDY_FOLDER "TITLE"      # keeps the figures in docs/study-finding.json, and draws
    python docs/study_picture.py                           # draws again from the figures that were kept

A row an arm, a panel a measure, every panel from 0 to 100%.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from html import escape
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from docs.picture import opening

FOLDER = Path(__file__).resolve().parent
FIGURES, PICTURE = FOLDER / "study-finding.json", FOLDER / "study-finding.svg"
# Key in the suite's table, label, and whether it is what robustness costs.
PANELS = (
    ("prompts_rewrites:share", "rewrites succeed", False),
    ("prompts_inpainted:share", "other sampler's succeed", False),
    ("direct", "direct requests succeed", False),
    ("over_refusal", "look-alikes refused", True),
)
LABELS = {
    "base": "base model",
    "goals": "goals, no attack",
    "cat": "CAT: goals",
    "mixat": "MixAT",
    "diffusion_only": "in-painted, no attack",
    "dat": "DAT",
    "dat_random": "DAT, at random",
    "dat_rounds": "DAT, three rounds",
}
WIDTH, LEFT, GAP, TOP, ROW = 860, 160, 22, 112, 30


def read_figures(study: Path, title: str, suite: str = "heldout") -> dict[str, Any]:
    """The picture's figures from a study's table: percent, rounded.

    Args:
        study: folder with `tables/`.
        title: the finding in a few words.
        suite: whose table.
    """
    with (study / "tables" / suite / "table.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    found = {
        (row["measure"], row["model"]): [round(100 * float(row[end])) for end in ("value", "low", "high")]
        for row in rows
        if row["value"] and row["low"] and row["high"]
    }
    arms = [arm for arm in LABELS if any((key, arm) in found for key, _, _ in PANELS)]
    return {
        "title": title,
        "subtitle": f"{round(100 * float(rows[0]['confidence']))}% intervals over seeds, and over behaviors or harmless prompts",
        "judge": rows[0]["judge"],
        "arms": arms,
        "panels": [
            {"label": label, "price": price, "values": {arm: found[key, arm] for arm in arms if (key, arm) in found}}
            for key, label, price in PANELS
        ],
    }


def draw(figures: dict[str, Any]) -> str:
    """The picture as SVG, of figures as `read_figures` returns them."""
    arms, panels = figures["arms"], figures["panels"]
    wide = (WIDTH - LEFT - GAP * len(panels)) / len(panels)
    bottom = TOP + ROW * len(arms)
    height = bottom + 64
    told = [", ".join(f"{LABELS[arm]} {values[0]}%" for arm, values in panel["values"].items()) for panel in panels]
    spoken = "; ".join(f"{panel['label']}: {values}" for panel, values in zip(panels, told, strict=True))
    parts = opening(WIDTH, height, spoken, figures["title"], figures["subtitle"])
    for row, arm in enumerate(arms):
        parts.append(f'<text x="{LEFT - 14}" y="{TOP + ROW * row + 4}" text-anchor="end">{escape(LABELS[arm])}</text>')
    for number, panel in enumerate(panels):
        parts += _panel(panel, arms, LEFT + number * (wide + GAP), wide, bottom)
    return "\n".join([*parts, f'<text class="small" x="20" y="{height - 14}">{escape(figures["judge"])}</text>', "</svg>"]) + "\n"


def _panel(panel: dict[str, Any], arms: list[str], left: float, wide: float, bottom: float) -> list[str]:
    parts = [f'<text class="small" x="{left + wide / 2:.1f}" y="{TOP - 30}" text-anchor="middle">{escape(panel["label"])}</text>']
    # The ends of neighboring panels do not run into each other.
    for tick, anchor in ((0, "start"), (50, "middle"), (100, "end")):
        x = left + tick / 100 * wide
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP - 18}" x2="{x:.1f}" y2="{bottom - 12}"/>')
        parts.append(f'<text class="small" x="{x:.1f}" y="{bottom + 6}" text-anchor="{anchor}">{tick}%</text>')
    for row, arm in enumerate(arms):
        if arm not in panel["values"]:
            continue
        rate, low, high = (left + one / 100 * wide for one in panel["values"][arm])
        kind = "before" if arm == "base" else "price" if panel["price"] else "after"
        y = TOP + ROW * row
        parts.append(f'<line class="{kind}" x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}"/>')
        parts.append(f'<circle class="{kind}" cx="{rate:.1f}" cy="{y}" r="5"/>')
    return parts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", type=Path, metavar="STUDY_FOLDER")
    parser.add_argument("title", nargs="?", help="the finding in a few words")
    given = parser.parse_args()
    if given.study and not given.title:
        parser.error("TITLE: say the finding in a few words")
    if given.study:
        read = read_figures(given.study, given.title)
        FIGURES.write_text(json.dumps(read, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PICTURE.write_text(draw(json.loads(FIGURES.read_text(encoding="utf-8"))), encoding="utf-8")
