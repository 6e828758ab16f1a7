import math

import numpy as np
import pytest
from scipy import integrate, stats

from lissom.estimate.student import C2, FEWEST, HUGE, Limits, threshold


def wealth(t, n):
    """The definition, literally: densities of T under effects from a half-normal distribution, against none."""

    def ratio(effect):
        prior = 2 * stats.norm.pdf(effect, scale=1 / math.sqrt(C2))
        return prior * stats.nct.pdf(t, n - 1, effect * math.sqrt(n)) / stats.t.pdf(t, n - 1)

    return integrate.quad(ratio, 0, 8 / math.sqrt(C2), limit=200)[0]


def looked_at(x):
    """Both ends, of rows of x that are each one experiment."""
    ends = []
    for row in x:
        limits = Limits(0.05)
        limits.add(row, np.ones(row.size))
        ends.append((limits.low, limits.high))
    return np.array(ends).T


@pytest.mark.parametrize(("n", "alpha"), [(20, 0.4), (20, 0.05), (100, 0.05), (100, 0.001)])
def test_the_threshold_is_where_the_definition_is_enough(n, alpha):
    assert wealth(threshold(np.array([n]), alpha)[0], n) == pytest.approx(1 / alpha, rel=1e-4)


def test_two_units_show_nothing_at_high_confidence():
    assert threshold(np.array([2]), 0.05)[0] == HUGE


def test_the_ends_are_students_with_a_larger_threshold():
    """Of units without skewness, and with all looks but the last taken away."""
    x = np.random.default_rng(0).normal(size=FEWEST // 2)
    x = np.r_[x, -x] + 0.3
    low, high = looked_at(x[None])
    half = threshold(np.array([FEWEST]), 0.05)[0] * stats.sem(x)
    assert (low[0], high[0]) == pytest.approx((0.3 - half, 0.3 + half))


def test_skewness_moves_the_end_that_it_endangers():
    x = np.random.default_rng(0).exponential(size=FEWEST)
    t, g = threshold(np.array([FEWEST]), 0.05)[0], stats.skew(x)
    low, high = looked_at(x[None])
    assert high[0] - x.mean() == pytest.approx(stats.sem(x) * (t + 2 * g * (1 + 2 * t * t) / (6 * math.sqrt(FEWEST))))
    assert x.mean() - low[0] == pytest.approx(stats.sem(x) * t)


def test_ends_fed_in_parts_are_those_at_once():
    d, m = np.random.default_rng(0).normal(3, 1, 100), np.random.default_rng(1).random(100)
    whole, parts = Limits(0.05), Limits(0.05)
    whole.add(d, m)
    for rows in np.split(np.arange(100), [3, 25, 26, 90]):
        parts.add(d[rows], m[rows])
    assert (parts.low, parts.high) == (whole.low, whole.high)


def test_a_ratio_has_the_spread_of_its_residuals():
    """Miller's clustered error: sizes that vary add nothing where the drop is the same for all."""
    m = np.random.default_rng(0).integers(1, 9, 40).astype(float)
    limits = Limits(0.05)
    limits.add(0.25 * m, m)
    assert (limits.low, limits.high) == pytest.approx((0.25, 0.25))


def test_normal_units_are_rarely_outside():
    """Type I error of either side, with a look after each of 100 units."""
    x = np.random.default_rng(0).normal(0, 3, (400, 100))
    low, high = looked_at(x)
    assert (high < 0).mean() <= 0.05
    assert (low > 0).mean() <= 0.05


def test_skewed_units_are_rarely_passed_falsely():
    """Type I error where a few units lose much, with a look after each of 100 units."""
    low, high = looked_at(np.random.default_rng(0).exponential(size=(400, 100)))
    assert (high < 1).mean() <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)
    assert (low > 1).mean() <= 0.05


def test_units_that_differ_little_are_told_soon():
    """Half a standard deviation from the budget: within 100 units in nearly all runs."""
    low, high = looked_at(np.random.default_rng(0).normal(0, 1, (100, 100)))
    assert (high < 0.5).mean() > 0.95
    assert (low > -0.5).mean() > 0.95


def test_the_units_asked_for_are_enough():
    x = np.random.default_rng(0).normal(0, 1, 50)
    limits = Limits(0.05)
    limits.add(x, np.ones(50))
    far, near = limits.more(x.mean() + 1), limits.more(x.mean() + 0.1)
    assert far == 1
    assert near is not None
    times = math.ceil((50 + near) / 50)
    limits.add(np.tile(x, times - 1), np.ones(50 * (times - 1)))
    assert limits.high <= x.mean() + 0.1
    assert limits.more(x.mean()) is None
