import math

import numpy as np
import pytest
from scipy.special import logsumexp

from lissom.estimate.betting import BETS, Wealth, _together, gains, limits, losses

MAX_DROP = 0.01


def running_wealth(d, drop):
    """The definition, literally, for rows of d that are each one experiment."""
    bets = [c / (1 - drop) for c in BETS]
    return sum(np.exp(np.cumsum(np.log(1 + bet * (drop - d)), axis=1)) for bet in bets) / len(bets)


@pytest.mark.parametrize("flipping", [0.01, 0.04, 0.2])
def test_a_drop_at_the_budget_is_rarely_passed(flipping):
    """Type I error, with looks after every one of 2,000 examples, at the boundary where it is largest."""
    rng, runs = np.random.default_rng(0), 1000
    u = rng.random((runs, 2000))
    lost = (flipping + MAX_DROP) / 2
    d = np.where(u < lost, 1.0, np.where(u < flipping, -1.0, 0.0))
    passed = (running_wealth(d, MAX_DROP) >= 20).any(axis=1).mean()
    failed = (running_wealth(-d, -MAX_DROP) >= 20).any(axis=1).mean()
    assert passed <= 0.05
    assert failed <= 0.05


def test_few_flips_pass_soon():
    """0.3 % lost and 0.3 % gained: half of the runs are decided within 700 examples, nearly all within 3,000."""
    u = np.random.default_rng(0).random((500, 3000))
    d = np.where(u < 0.003, 1.0, np.where(u > 0.997, -1.0, 0.0))
    passed = running_wealth(d, MAX_DROP) >= 20
    assert passed[:, :700].any(axis=1).mean() > 0.5
    assert passed.any(axis=1).mean() > 0.97


def flipping(n, lost, gained):
    """Drops of n examples, in random order."""
    return np.random.default_rng(0).permutation(np.r_[np.ones(lost), -np.ones(gained), np.zeros(n - lost - gained)])


def test_wealth_is_the_definition_and_is_kept():
    d, ones = flipping(500, 9, 4), np.ones(500)
    wealth = Wealth()
    for part in np.split(d, [1, 7, 300]):
        wealth.add(gains(part, np.ones(part.size), MAX_DROP))
    assert wealth.most == pytest.approx(math.log(max(1.0, running_wealth(d[None], MAX_DROP).max())))
    whole = Wealth()
    whole.add(gains(d, ones, MAX_DROP))
    assert whole.most == wealth.most


@pytest.mark.parametrize("spread", [0.0, 1e-9, 1.0, 300.0])
def test_all_bets_together_are_the_logarithm_of_their_mean(spread):
    """To the last bit what scipy computes, also where many bets are as rich as the richest, or all others lost."""
    rng = np.random.default_rng(0)
    logs = spread * rng.normal(size=(BETS.size, 2000)).round(1) - 5
    assert np.array_equal(_together(logs), logsumexp(logs, axis=0) - math.log(BETS.size))


@pytest.mark.parametrize("accuracy", [0.4, 0.9])
@pytest.mark.parametrize("flips", [0.01, 0.1])
def test_a_relative_drop_at_the_budget_is_rarely_passed(accuracy, flips):
    """A hundredth of what the original gets right is lost, on balance; examples in clusters of ten that go together."""
    rng = np.random.default_rng(0)
    lost = (flips + MAX_DROP * accuracy) / 2
    right, u = rng.random((1000, 200, 10)) < accuracy, rng.random((1000, 200, 1))
    # Some clusters lose what they had right, others gain what they had wrong, so that the balance is the budget.
    after = np.where(u < lost / accuracy, False, np.where(u > 1 - (flips - lost) / (1 - accuracy), True, right))
    d, m = (right.astype(float) - after).mean(2), right.mean(2)
    assert (d.mean() / m.mean()) == pytest.approx(MAX_DROP, abs=0.003)
    for x in (gains(d, m, MAX_DROP), losses(d, m, MAX_DROP, True)):
        path = sum(np.exp(np.cumsum(np.log(1 + c * x), axis=1)) for c in BETS) / BETS.size
        assert (path >= 20).any(axis=1).mean() <= 0.05


@pytest.mark.parametrize("relative", [False, True])
def test_the_limits_are_where_the_wealth_is_enough(relative):
    d = flipping(300, 4, 2)
    m = np.where(d == 0, np.arange(300) % 2, d > 0).astype(float) if relative else np.ones(300)
    low, high = limits(d, m, 0.05, relative)

    def enough(gains):
        wealth = Wealth()
        wealth.add(gains)
        return wealth.most >= math.log(20)

    assert enough(gains(d, m, high + 1e-6))
    assert not enough(gains(d, m, high - 1e-6))
    assert enough(losses(d, m, low - 1e-6, relative))
    assert not enough(losses(d, m, low + 1e-6, relative))
    assert low < d.sum() / m.sum() < high
