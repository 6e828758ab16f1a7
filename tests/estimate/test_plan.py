"""Certificates of so many examples as were planned."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissom.errors import DataError
from lissom.estimate import Certifier, certify
from lissom.estimate.betting import BEFORE, BETS, BOLDEST, NORMAL, Plan, Wealth, gains, halves
from lissom.types import Budget

BUDGET = Budget(max_drop=0.02)


def drops(flips, lost, shape):
    """Examples of which so many flip, so that so much is lost on balance."""
    u = np.random.default_rng(0).random(shape)
    return np.where(u < (flips + lost) / 2, 1.0, np.where(u < flips, -1.0, 0.0))


def most(d, planned):
    """The largest wealth of a run, in any look; of rows that are each one run."""
    found = []
    for row in d:
        wealth = Wealth(None if planned is None else Plan(planned, 0.05))
        wealth.add(gains(row, np.ones(row.size), BUDGET.max_drop))
        found.append(math.exp(wealth.most))
    return np.array(found)


def test_half_of_the_wealth_is_bet_as_is_said():
    d = drops(0.1, 0.0, 60)
    x = gains(d, np.ones(60), 0.02)
    plan, table, wealth, power = Plan(50, 0.05), np.ones(BETS.size), 1.0, BEFORE[0] * BEFORE[1]
    for k, gain in enumerate(x):
        share = wealth / (1.2 * 40 - table.mean())
        z = NORMAL.inv_cdf(share)
        if k < 50:
            bet = NORMAL.pdf(z) / share / math.sqrt(power / (BEFORE[1] + k) * (50 - k))
            wealth *= 1 + min(bet, BOLDEST) * gain
        before, table, power = table.mean(), table * (1 + BETS * gain), power + gain**2
        assert plan.add(np.array([gain]), np.array([before])) == pytest.approx(wealth)
    whole = Wealth(Plan(50, 0.05))
    whole.add(x)
    assert whole.plan.path == pytest.approx(plan.path)
    assert whole.plan.path[50:] == pytest.approx(whole.plan.path[49])  # nothing is bet after what was planned
    assert halves(np.log([4.0]), np.array([2.0])) == pytest.approx(math.log(3))


@pytest.mark.parametrize("flips", [0.02, 0.06, 0.2])
@pytest.mark.parametrize("planned", [300, 600])  # all, and half of those that come
def test_a_drop_at_the_budget_is_rarely_passed_whenever_one_looks(flips, planned):
    found = most(drops(flips, BUDGET.max_drop, (1000, 600)), planned)
    for factor in (5, 10, 20):
        assert (found >= factor).mean() <= 1 / factor


def test_what_differs_often_passes_far_more_often_than_without_a_plan():
    """6 % flip, in 1,000 examples: a test of that number at once would pass 83 of a hundred."""
    d = drops(0.06, 0.0, (300, 1000))
    planned, any_time = ((most(d, n) >= 20).mean() for n in (1000, None))
    assert planned > 0.6
    assert planned > any_time + 0.25


def test_what_never_differs_passes_as_soon():
    scores = np.ones(2000)
    ends = {}
    for planned in (None, 2000):
        certifier = Certifier(BUDGET, planned=planned)
        while certifier.verdict == "NEED MORE":
            certifier.add([1.0], [1.0])
        ends[planned] = certifier.certificate.n
    assert ends[2000] < 1.4 * ends[None]
    assert certify(scores, scores, BUDGET, planned=2000).method.endswith(", 2,000 planned")


@given(
    st.lists(st.sampled_from([(1, 1), (1, 1), (1, 1), (1, 0), (0, 1), (0, 0)]), min_size=1, max_size=120),
    st.integers(1, 150),
    st.booleans(),
    st.sampled_from([0.05, 0.2, 0.5]),
)
def test_in_parts_or_at_once_and_the_verdict_is_that_of_the_limits(scores, planned, relative, drop):
    before, after = np.array(scores, dtype=float).T
    budget = Budget(max_drop=drop, relative=relative, confidence=0.8)
    whole, parts = Certifier(budget, planned=planned), Certifier(budget, planned=planned)
    whole.add(before, after)
    for one in scores:
        parts.add([one[0]], [one[1]])
    found = whole.certificate
    assert parts.certificate.verdict == found.verdict
    assert parts.certificate.drop.high == pytest.approx(found.drop.high)
    assert found.drop.low <= found.drop.high
    if found.verdict != "FAIL":  # where both were shown it says FAIL
        assert (found.verdict == "PASS") == (found.drop.high <= drop)


def test_scores_without_bounds_are_tested_as_ever():
    scores = np.random.default_rng(0).normal(size=(2, 50))
    budget = Budget(max_drop=0.5)
    assert certify(*scores, budget, bounds=None, planned=50) == certify(*scores, budget, bounds=None)


def test_no_examples_are_no_plan():
    with pytest.raises(DataError, match="planned: 0 units are none; give how many"):
        Certifier(BUDGET, planned=0)
