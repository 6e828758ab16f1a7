"""The line through what passes cost."""

import pytest

from lissom.engine.costs import WARM, Line


def seen(passes: list[tuple[int, float]]) -> Line:
    line = Line()
    for _ in range(WARM):
        line.see(1, 1000.0)
    for rows, seconds in passes:
        line.see(rows, seconds)
    return line


def test_nothing_is_known_at_first_nor_while_passes_warm_up() -> None:
    assert (seen([]).at(5), seen([]).slope) == (0, 0)


def test_the_line_goes_through_passes_that_lie_on_it() -> None:
    line = seen([(rows, 3 + 0.5 * rows) for rows in (1, 4, 1, 9, 2)])
    assert (line.slope, line.at(20)) == (pytest.approx(0.5), pytest.approx(13))


def test_as_long_as_rows_are_the_same_the_slope_is_what_it_was() -> None:
    line = seen([(1, 4.0), (5, 6.0), *[(3, 7.0)] * 500])
    assert (line.slope, line.at(3), line.at(5)) == pytest.approx((0.5, 7, 8), rel=1e-4)


def test_what_was_long_ago_is_forgotten() -> None:
    line = seen([*[(1, 50.0), (2, 90.0)] * 20, *[(1, 4.0), (5, 6.0)] * 400])
    assert (line.slope, line.at(1)) == (pytest.approx(0.5, rel=1e-3), pytest.approx(4, rel=1e-3))


def test_rows_cost_no_less_than_nothing() -> None:
    assert seen([(1, 4.0), (5, 2.0)]).slope == 0
