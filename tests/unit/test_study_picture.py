"""The picture of a study's finding, from a table that is made up."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

from docs.study_picture import LABELS, PANELS, draw, read_figures

SPACE = "{http://www.w3.org/2000/svg}"


def a_table(folder: Path, without: tuple[str, str] = ("", "")) -> Path:
    place = folder / "tables" / "heldout"
    place.mkdir(parents=True)
    with (place / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["measure", "unit", "model", "value", "low", "high", "confidence", "judge"])
        for number, (key, _, _) in enumerate(PANELS):
            for at, arm in enumerate(LABELS):
                value = 0.9 - 0.05 * at - 0.1 * number
                numbers = ["", "", ""] if (key, arm) == without else [value, value - 0.04, value + 0.034]
                writer.writerow([key, "rate", arm, *numbers, 0.95, "Judged by rules <a proxy>."])
        writer.writerow(["gap/whole/plain", "nats", "dat", -1.0, -2.0, 0.0, 0.95, ""])
    return folder


def test_figures_are_the_tables_and_marks_lie_where_they_say(tmp_path: Path) -> None:
    figures = read_figures(a_table(tmp_path, without=("direct", "cat")), "DAT & others")
    assert figures["arms"] == list(LABELS)
    assert figures["panels"][0]["values"]["goals"] == [85, 81, 88]
    assert "cat" not in figures["panels"][2]["values"]
    drawn = ElementTree.fromstring(draw(figures))
    circles, lines = ([one for one in drawn.iter(f"{SPACE}{kind}") if one.get("class") != "grid"] for kind in ("circle", "line"))
    assert len(circles) == len(lines) == len(PANELS) * len(LABELS) - 1
    grid = [float(one.get("x1", "0")) for one in drawn.iter(f"{SPACE}line") if one.get("class") == "grid"]
    zero, full = grid[0], grid[2]
    assert float(circles[1].get("cx", "0")) == round(zero + 0.85 * (full - zero), 1)
    assert [one.get("class") for one in circles[:2]] == ["before", "after"]
    assert circles[-1].get("class") == "price"
    # Robustness and its price beside each other, nothing outside, and every row named.
    width = float(drawn.get("width", "0"))
    assert all(0 < float(one.get("x2", "0")) < width for one in lines)
    texts = [one.text or "" for one in drawn.iter(f"{SPACE}text")]
    assert set(LABELS.values()) < set(texts)
    assert "Judged by rules <a proxy>." in texts
    said = drawn.get("aria-label", "")
    assert said.startswith("rewrites succeed: base model 90%, goals, no attack 85%")


def test_the_labels_of_panels_do_not_run_into_each_other(tmp_path: Path) -> None:
    drawn = ElementTree.fromstring(draw(read_figures(a_table(tmp_path), "t")))
    labels = {label for _, label, _ in PANELS}
    spans = []
    for text in drawn.iter(f"{SPACE}text"):
        if text.text in labels:
            # About 6.3 pixels a character in the small type.
            half = 6.3 * len(text.text or "") / 2
            spans.append((float(text.get("x", "0")) - half, float(text.get("x", "0")) + half))
    assert len(spans) == len(PANELS)
    assert all(first[1] < second[0] for first, second in pairwise(spans))
