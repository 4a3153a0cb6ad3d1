"""Curves of runs as inline SVG: of one point or thousands, constant, tiny or huge, each is drawn where it can be seen."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from maelift.core.report.charts import Line, draw_curves, points

pytestmark = pytest.mark.curves

MANY = [(float(step), 2.0 + (step % 7) / 7) for step in range(1, 3001)]


@pytest.mark.parametrize(
    ("lines", "logarithmic"),
    [
        ([("train/loss", [(1.0, 0.5)])], False),
        ([("train/loss", [(10.0, 0.25), (20.0, 0.25)])], False),
        ([("train/loss", MANY), ("held_out/loss", [(1500.0, 2.5), (3000.0, 2.25)])], False),
        ([("lr", [(1.0, 0.0), (2.0, 1e-9), (1e7, 3e12)])], False),
        ([("gradient_norm", [(1.0, 1e-6), (2.0, 1e6)])], True),
    ],
    ids=["one point", "constant", "many", "tiny and huge", "logarithmic"],
)
def test_curves_lie_within_their_drawing_with_a_marker_for_each_of_few_points(
    lines: list[Line], logarithmic: bool
) -> None:
    drawn = str(draw_curves(lines, "loss", "name", logarithmic=logarithmic))
    legend, _, drawing = drawn.rpartition("</ul>")
    assert all(name in legend for name, _ in lines)
    svg = ElementTree.fromstring(drawing.strip())
    width, height = (float(size) for size in svg.attrib["viewBox"].split()[2:])
    markers = [use for use in svg.iter("{http://www.w3.org/2000/svg}use") if "--line" in use.attrib.get("style", "")]
    assert len(markers) == sum(len(found) for _, found in lines if len(found) <= 40)
    for marker in markers:
        assert 0 < float(marker.attrib["x"]) < width and 0 < float(marker.attrib["y"]) < height
    assert "nan" not in re.sub(r"<text.*?</text>", "", drawing)


def test_points_that_are_not_finite_are_left_out() -> None:
    records = [{"step": 1.0, "loss": float("nan")}, {"step": 2.0, "loss": 0.5}, {"step": 3.0, "lr": 0.1}]
    assert points(records, "loss", 100.0) == [(2.0, 50.0)]
