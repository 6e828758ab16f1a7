import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from lissom.report import Report
from lissom.report.predicted import Figure, predicted


def places(svg: str) -> dict[int, tuple[float, float]]:
    """Where each point is drawn, by its number."""
    found = re.findall(r'<a href="#point-(\d+)">.*?<use [^>]*x="([^"]*)" y="([^"]*)"', svg, re.DOTALL)
    return {int(number): (float(x), float(y)) for number, x, y in found}


@pytest.mark.parametrize("figure", ["latency", "KL"])
def test_what_was_predicted_rightly_lies_on_the_diagonal(report: Report, figure: Figure) -> None:
    points = [
        replace(point, predicted_latency_ms=point.latency.value, predicted_kl=point.kl.value) for point in report.points
    ]
    points[2] = replace(
        points[2], predicted_latency_ms=0.5 * points[2].latency.value, predicted_kl=0.5 * points[2].kl.value
    )
    found = places(predicted(points, figure=figure))
    level = found[1][0] + found[1][1]  # in a square picture, up by as much as to the right
    assert found[3][0] + found[3][1] == pytest.approx(level, abs=0.01)
    assert found[4][0] + found[4][1] == pytest.approx(level, abs=0.01)
    assert found[2][0] + found[2][1] < level - 5  # more was measured: above it


def test_a_point_says_what_it_is(report: Report) -> None:
    svg = predicted(report.points, report.chosen, figure="latency")
    titles = [title.text for title in ElementTree.fromstring(svg).iter() if title.tag.endswith("title")]
    assert "gptq 4 bits: 2.00 MB, 2.00 ms, drop 0.32 %, PASS" in titles
    assert "predicted latency, ms" in svg


def test_what_was_not_predicted_is_not_drawn(report: Report) -> None:
    points = [replace(point, predicted_latency_ms=None) for point in report.points]
    assert predicted(points, figure="latency") == ""
    points[3] = report.points[3]
    assert list(places(predicted(points, figure="latency"))) == [3]


def test_kl_that_is_not_positive_is_not_on_logarithmic_axes(report: Report) -> None:
    assert list(places(predicted(report.points, figure="KL"))) == [1, 2, 3, 4]  # the original's is 0


def test_names_are_escaped(hostile: Report) -> None:
    assert "<script" not in predicted(hostile.points, figure="KL")
