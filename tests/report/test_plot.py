import re
from dataclasses import replace
from random import Random
from xml.etree import ElementTree

import pytest

from lissom.report import Report, plot
from lissom.report.picture import VARIABLES
from lissom.report.plot import Against, frontier


def drawn(report: Report, against: Against = "size") -> str:
    return plot(report.points, report.chosen, against=against, max_drop=report.budget.max_drop)


@pytest.mark.parametrize("against", ["size", "latency"])
def test_it_is_a_picture_with_every_name_and_the_budget(report: Report, against: Against) -> None:
    svg = drawn(report, against)
    words = [text.text for text in ElementTree.fromstring(svg).iter() if text.tag.endswith("}text")]
    for point in report.points:
        assert any(str(word).startswith(point.name) for word in words)
    assert "budget 1 %" in words
    assert {"size": "size, MB", "latency": "latency, ms"}[against] in words


def test_what_lies_above_the_picture_says_its_drop(report: Report) -> None:
    assert "binary (51.5 %)" in drawn(report)


def test_every_colour_is_a_variable(report: Report) -> None:
    svg = drawn(report)
    assert all(f"var({variable})" in svg for variable in VARIABLES.values())
    assert not re.search(r"(fill|stroke): ?#", svg.split("</style>", 1)[1])


def test_the_same_points_draw_the_same_picture(report: Report) -> None:
    assert drawn(report) == drawn(report)


def test_names_are_escaped_and_are_no_mathematics(hostile: Report) -> None:
    svg = drawn(hostile)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x$" in svg
    assert "<script" not in svg


def test_the_original_alone_can_be_drawn(report: Report) -> None:
    assert "original" in plot(report.points[:1], against="size", max_drop=0.0)


def test_the_line_joins_the_points_that_no_other_beats_in_both(report: Report) -> None:
    generator = Random(0)
    points = [
        replace(
            report.points[1], nbytes=generator.randrange(10**6, 10**7), drop=replace(report.points[1].drop, value=v)
        )
        for v in (generator.random() for _ in range(40))
    ]
    unbeaten = [
        (one.nbytes / 1e6, one.drop.value)
        for one in points
        if not any(o.nbytes <= one.nbytes and o.drop.value <= one.drop.value for o in points if o is not one)
    ]
    xs, drops = frontier([report.original, *points], "size", top=2.0)
    assert list(zip(xs, drops, strict=True)) == sorted(unbeaten)


def test_every_point_is_a_link_to_its_figures(report: Report) -> None:
    svg = drawn(report)
    assert re.findall(r'<a href="#point-(\d)"', svg) == ["0", "1", "2", "3", "4"]
    assert "<title>gptq 4 bits: 2.00 MB, 2.00 ms, drop 0.32 %, PASS</title>" in svg
