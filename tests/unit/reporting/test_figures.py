from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from dat_ray.reporting.figures import (
    STYLES,
    Dot,
    DotRow,
    Line,
    Spot,
    dot_plot,
    doubling_ticks,
    line_plot,
    mark,
    nice_ticks,
    running_mean,
    scatter,
)


def test_ticks_are_round_and_cover_the_range() -> None:
    assert nice_ticks(0.0, 1.0) == pytest.approx([0, 0.5, 1.0])
    assert nice_ticks(-5.9, -1.2) == pytest.approx([-6, -4, -2, 0])
    assert nice_ticks(0, 3, whole=True) == [0, 1, 2, 3]
    same = nice_ticks(2.0, 2.0)
    assert same[0] < 2.0 < same[-1]


def test_running_mean_keeps_length_and_shrinks_at_the_ends() -> None:
    assert running_mean([0, 3, 6, 9], 3) == [1.5, 3.0, 6.0, 7.5]
    assert running_mean([4.0, 8.0], 1) == [4.0, 8.0]


def numbers(kind: str, svg: str, attribute: str) -> list[float]:
    found = [element for element in ElementTree.fromstring(svg).iter() if element.get("class") == kind]
    return [float(element.get(attribute, "nan")) for element in found]


def test_dots_and_intervals_stand_where_the_axis_says() -> None:
    svg = dot_plot([DotRow("attack", [Dot(0, "base", 0.25, 0.0, 0.5)])], "title", "share, %")
    ticks = numbers("grid", svg, "x1")
    assert len(ticks) == 5
    assert numbers("mark m0", svg, "cx") == [pytest.approx(ticks[1])]
    assert numbers("interval m0", svg, "x1")[0] == pytest.approx(ticks[0])
    assert numbers("interval m0", svg, "x2")[0] == pytest.approx(ticks[2])


def test_models_differ_in_shape_and_dash_and_name_not_only_in_color() -> None:
    shapes = {mark(series, 0, 0).replace(f"m{series}", "") for series in range(STYLES)}
    assert len(shapes) == STYLES
    svg = dot_plot([DotRow("a", [Dot(0, "base", 0.5, None, None), Dot(1, "a model of a long name", 0.5, None, None)])], "t", "a")
    assert ">base</text>" in svg
    assert ">a model of a long n…</text>" in svg
    assert "a model of a long name: 50%" in svg
    assert "interval" not in svg


def test_a_longer_name_has_the_room_that_it_needs() -> None:
    short, long = (dot_plot([DotRow("a", [Dot(0, name, 0.5, None, None)])], "t", "a") for name in ("base", "diffusion_only"))
    assert ">diffusion_only</text>" in long
    assert numbers("name", short, "x") == [pytest.approx(90)]
    # The text ends there; of 12 pixels a character of a plain face is at most 7 wide.
    assert numbers("name", long, "x")[0] >= 7 * len("diffusion_only") - 2
    assert numbers("grid", long, "x1")[0] > numbers("grid", short, "x1")[0]


def test_what_was_not_measured_is_not_drawn() -> None:
    svg = dot_plot([DotRow("a", [Dot(0, "base", None, None, None)])], "t", "a")
    assert "<circle" not in svg
    assert "not measured" in svg


def test_lines_are_to_scale_and_rise_upward() -> None:
    svg = line_plot([Line(0, "", [(0, 0.0), (5, 1.0), (10, 2.0)])], "t", "update", "nats")
    [points] = re.findall(r'<polyline[^>]* points="([^"]+)"', svg)
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points.split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y1


def test_a_single_point_and_a_flat_curve_can_be_drawn() -> None:
    for points in ([(3.0, 1.0)], [(0.0, 2.0), (1.0, 2.0)]):
        ElementTree.fromstring(line_plot([Line(1, "", points)], "t", "x", "y"))
        assert "nan" not in line_plot([Line(1, "", points)], "t", "x", "y")


def test_text_is_escaped() -> None:
    svg = dot_plot([DotRow('<script>"', [])], '"><script>', "a & b")
    ElementTree.fromstring(svg)
    assert "<script" not in svg


def test_equal_factors_are_equal_steps_along() -> None:
    points = [(1.0, 0.1), (2.0, 0.2), (4.0, 0.3)]
    svg = line_plot([Line(1, "", points)], "t", "attempts", "share", share=True, doubling=True)
    x1, x2, x4 = numbers("mark m1", svg, "x")
    assert x2 - x1 == pytest.approx(x4 - x2, abs=0.2)
    assert doubling_ticks(1000) == [1, 4, 16, 64, 256]
    assert doubling_ticks(5) == [1, 2, 4]


def test_spots_stand_to_scale_and_no_key_covers_another() -> None:
    spots = [Spot(0, key, key, (0.5, 0.4, 0.6), (0.5, 0.3, 0.7)) for key in "ABCD"] + [Spot(1, "E", "E", (1, 1, 1), (0, 0, 0))]
    svg = scatter(spots, "t", "x", "y", spots[:2])
    root = ElementTree.fromstring(svg)
    keys = [(float(e.get("x", 0)), float(e.get("y", 0))) for e in root.iter() if e.get("class") == "key"]
    assert len(keys) == 5
    assert len({(round(x), round(y)) for x, y in keys}) == 5
    grid = [e for e in root.iter() if e.get("class") == "grid"]
    right = max(float(e.get("x1", 0)) for e in grid)
    bottom = max(float(e.get("y2", 0)) for e in grid)
    [square] = [e for e in root.iter() if e.get("class") == "mark m1"]
    assert float(square.get("x", 0)) + 4.5 == pytest.approx(right, abs=0.1)
    assert float(square.get("y", 0)) + 4.5 == pytest.approx(bottom, abs=0.1)
