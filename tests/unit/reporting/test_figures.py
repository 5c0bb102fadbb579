from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from dat_ray.reporting.figures import Dot, Line, Row, dot_plot, line_plot, nice_ticks, running_mean


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
    svg = dot_plot([Row("attack", [Dot("base", "base", 0.25, 0.0, 0.5)])], "title", "share, %")
    ticks = numbers("grid", svg, "x1")
    assert len(ticks) == 5
    assert numbers("mark base", svg, "cx") == [pytest.approx(ticks[1])]
    assert numbers("interval base", svg, "x1")[0] == pytest.approx(ticks[0])
    assert numbers("interval base", svg, "x2")[0] == pytest.approx(ticks[2])


def test_models_differ_in_shape_and_dash_not_only_in_color() -> None:
    svg = dot_plot([Row("a", [Dot("base", "", 0.5, None, None), Dot("adapted", "", 0.5, None, None)])], "t", "a")
    assert "<circle" in svg
    assert "<rect" in svg
    assert "interval" not in svg


def test_what_was_not_measured_is_not_drawn() -> None:
    svg = dot_plot([Row("a", [Dot("base", "base", None, None, None)])], "t", "a")
    assert "<circle" not in svg


def test_lines_are_to_scale_and_rise_upward() -> None:
    svg = line_plot([Line("base", "", [(0, 0.0), (5, 1.0), (10, 2.0)])], "t", "update", "nats")
    points = re.search(r'<polyline[^>]* points="([^"]+)"', svg).group(1)
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points.split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y1


def test_a_single_point_and_a_flat_curve_can_be_drawn() -> None:
    for points in ([(3.0, 1.0)], [(0.0, 2.0), (1.0, 2.0)]):
        ElementTree.fromstring(line_plot([Line("adapted", "", points)], "t", "x", "y"))
        assert "nan" not in line_plot([Line("adapted", "", points)], "t", "x", "y")


def test_text_is_escaped() -> None:
    svg = dot_plot([Row('<script>"', [])], '"><script>', "a & b")
    ElementTree.fromstring(svg)
    assert "<script" not in svg
