import re

import matplotlib
import pytest

from lissom.report.picture import INK, SETTINGS, VARIABLES, blank, mark, svg


@pytest.fixture
def drawn() -> str:
    with matplotlib.rc_context(SETTINGS):
        figure, axes = blank(3, 2, x="size", y="drop")
        mark(axes, 1, 1, 7, "o", INK, chosen=True)
    return svg(figure, "<a> picture", {7: 'small & "good"'})


def test_a_point_is_a_link_that_says_what_it_is(drawn: str) -> None:
    assert '<a href="#point-7"><title>small &amp; &quot;good&quot;</title>' in drawn
    assert drawn.count("<a ") == 1
    assert "_blank" not in drawn


def test_it_has_a_name_and_no_ids_but_of_what_is_used(drawn: str) -> None:
    assert 'aria-label="&lt;a&gt; picture"' in drawn
    assert set(re.findall(r' id="([^"]*)"', drawn)) == set(re.findall(r"#([mp][0-9a-f]{10})", drawn))


def test_every_colour_is_a_variable(drawn: str) -> None:
    assert not re.search(r"#0[0-9]0[0-9]0[0-9]\b", drawn)
    assert VARIABLES[INK] in drawn.split("</style>", 1)[1]
