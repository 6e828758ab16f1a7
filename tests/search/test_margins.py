"""Margins: widths inside the budgets, and drops drawn to what distances tell."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissom.estimate import Estimate
from lissom.evaluate import Comparison, metric
from lissom.search.margins import by_law, clear, expected, line, margins
from lissom.types import Budget


def comparison(original: float, drop: float, width: float, n: int = 10) -> Comparison:
    """Figures of a model."""
    known = partial(Estimate, n=n)
    return Comparison(
        metric="",
        original=known(value=original, low=original, high=original),
        compressed=known(value=original - drop, low=original - drop, high=original - drop),
        drop=known(value=drop, low=drop - width, high=drop + width),
    )


def test_a_margin_is_that_of_the_tightest_budget_in_half_widths() -> None:
    """One candidate alone, whose own drop is the line's."""
    figures = {"accuracy": comparison(0.9, 0.01, 0.005), "agreement": comparison(1.0, 0.02, 0.0)}
    budgets = {metric("accuracy"): Budget(max_drop=0.02), metric("agreement"): Budget(max_drop=0.02)}
    first, second = budgets
    by = partial(margins, figures=[figures], distances=[0.1], learned=[False])
    assert math.isclose(by({first: budgets[first]})[0], 2.0)
    assert by({second: budgets[second]}) == [math.inf]  # exactly what is allowed, and without a doubt
    assert math.isclose(by(budgets)[0], 2.0)
    assert by({second: Budget(max_drop=0.01)}) == [-math.inf]
    share = Budget(max_drop=0.01, relative=True)
    assert math.isclose(by({first: share})[0], -0.2)  # 0.9 % are allowed


def test_the_closer_of_two_is_the_surer_though_by_chance_it_dropped_more() -> None:
    kind = metric("accuracy")
    drops = {0.001: 0.0027, 0.002: -0.0007, 0.02: 0.02, 0.04: 0.04}
    figures = [{kind.name: comparison(0.9, drop, 0.004)} for drop in drops.values()]
    close, less_close, *_ = margins({kind: Budget(max_drop=0.005)}, figures, list(drops), [False] * 4)
    assert close > less_close > 0


def test_those_that_have_learned_have_a_line_of_their_own() -> None:
    """Far from the original, and yet with a small drop: drawn to the line of the others it would be lost."""
    kind = metric("accuracy")
    drops = {0.02: 0.004, 0.1: 0.02, 0.2: 0.04, 0.21: 0.006}
    figures = [{kind.name: comparison(0.9, drop, 0.02)} for drop in drops.values()]
    by = partial(margins, {kind: Budget(max_drop=0.01)}, figures, list(drops))
    assert by([False, False, False, True])[-1] > 0 > by([False] * 4)[-1]


def test_a_drop_that_is_certain_stays_as_it_was_measured() -> None:
    measured, far = np.array([0.01, 0.002, 0.5]), np.array([0.1, 0.1, 0.0])
    assert np.array_equal(expected(measured, np.zeros(3), far), measured)


@given(
    st.lists(
        st.tuples(st.floats(-0.1, 0.3), st.floats(0, 0.1), st.floats(0, 2)).filter(lambda one: one[1] > 1e-6),
        min_size=1,
        max_size=8,
    )
)
def test_a_drop_is_drawn_to_the_line_and_not_beyond(found: list[tuple[float, float, float]]) -> None:
    measured, errors, far = (np.array(column) for column in zip(*found, strict=True))
    slope = line(measured, errors, far)
    drawn = expected(measured, errors, far)
    assert slope >= 0
    assert np.all(drawn >= np.minimum(measured, slope * far) - 1e-12)
    assert np.all(drawn <= np.maximum(measured, slope * far) + 1e-12)


def test_the_line_is_found_through_what_chance_hides() -> None:
    generator = np.random.default_rng(0)
    far = np.geomspace(0.001, 0.1, 30)
    drops = 0.4 * far
    errors = np.full(30, 0.003)
    measured = drops + errors * generator.standard_normal(30)
    assert math.isclose(line(measured, errors, far), 0.4, rel_tol=0.2)
    drawn = expected(measured, errors, far)
    assert np.abs(drawn - drops).mean() < 0.6 * np.abs(measured - drops).mean()


def test_who_was_seen_on_fewer_examples_is_as_sure_by_the_widths_of_all() -> None:
    kind, budget = metric("accuracy"), Budget(max_drop=0.1)
    whole, quarter = comparison(0.9, 0.02, 0.01, n=400), comparison(0.9, 0.02, 0.02, n=100)
    found = margins({kind: budget}, [{"accuracy": whole}, {"accuracy": quarter}], [0.2, 0.2], [False, False])
    assert found == pytest.approx([8, 8])


def test_the_closer_is_the_surer_though_by_chance_few_answers_told_of_the_other() -> None:
    kind = metric("accuracy")
    widths = {0.002: 0.0060, 0.005: 0.0045, 0.01: 0.0090, 0.02: 0.0130}
    figures = [{kind.name: comparison(0.9, 0.0, width)} for width in widths.values()]
    close, less_close, *_ = margins({kind: Budget(max_drop=0.005)}, figures, list(widths), [False] * 4)
    assert close > less_close > 0


@pytest.mark.parametrize(("power", "found"), [(0.5, 0.5), (2.0, 1.0), (-0.5, 0.0)])
def test_widths_go_by_a_power_of_the_distance(power: float, found: float) -> None:
    far = np.geomspace(0.001, 0.1, 20)
    chance = np.exp(0.1 * np.random.default_rng(0).standard_normal(20))
    law = by_law(0.3 * far**power * chance, far)
    assert np.diff(np.log(law)) / np.diff(np.log(far)) == pytest.approx(found, abs=0.05)
    assert np.log(law).mean() == pytest.approx(np.log(0.3 * far**power * chance).mean())


def test_few_widths_are_as_they_were_measured() -> None:
    """And so is that of a candidate that says what the original does."""
    two, four = np.array([0.1, 0.5]), np.array([0.1, 0.2, 0.3, 0.0])
    assert np.array_equal(by_law(two, np.array([0.01, 0.02])), two)
    assert np.array_equal(by_law(four, np.full(4, 0.1)), four)
    assert by_law(four, np.array([0.01, 0.02, 0.03, 0.0]))[3] == 0


@pytest.mark.parametrize(("drop", "width", "told"), [(0.02, 0.02, True), (0.05, 0.02, False), (0.2, 0.02, True)])
def test_what_is_far_from_the_budget_is_clear(drop: float, width: float, told: bool) -> None:
    one, near = comparison(0.9, drop, width), comparison(1.0, 0.09, 0.01)
    budgets = {metric("accuracy"): Budget(max_drop=0.1)}
    assert clear(budgets, {"accuracy": one}) == told
    both = {**budgets, metric("agreement"): Budget(max_drop=0.1)}
    assert clear(both, {"accuracy": one, "agreement": near}) == (told and drop > 0.1)  # one that is broken is enough
