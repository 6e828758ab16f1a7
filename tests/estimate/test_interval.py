import math

import numpy as np
import pytest
from scipy import stats

from lissom.errors import DataError
from lissom.estimate import Estimate, mean_estimate, median_estimate, perplexity, proportion


def test_an_estimate_reads_well():
    accuracy = Estimate(value=0.915, low=0.896, high=0.931, n=1000)
    assert f"{accuracy:.1%}" == "91.5 % [89.6, 93.1] n=1000"
    assert str(accuracy) == "0.915 [0.896, 0.931] n=1000"
    assert str(Estimate(value=12.344, low=12.1, high=12.6, n=15, unit="ms")) == "12.34 ms [12.1, 12.6] n=15"


def test_a_falling_function_swaps_the_ends():
    rate = Estimate(value=2.0, low=1.0, high=4.0, n=9, unit="ms").through(lambda ms: 8 / ms, unit="tokens/s")
    assert (rate.value, rate.low, rate.high, rate.unit) == (4.0, 2.0, 8.0, "tokens/s")


def test_mean_is_students():
    x = np.random.default_rng(0).normal(3, 2, 30)
    low, high = stats.t.interval(0.9, 29, x.mean(), stats.sem(x))
    estimate = mean_estimate(x, unit="nats", confidence=0.9)
    assert (estimate.low, estimate.high) == pytest.approx((low, high))
    assert mean_estimate([1.0]).high == math.inf


def test_proportion_is_wilsons():
    for hits, n in [(0, 5), (5, 5), (915, 1000), (1, 2)]:
        expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
        estimate = proportion(hits, n)
        assert (estimate.low, estimate.high) == pytest.approx(tuple(expected), abs=1e-12)
        assert estimate.low <= estimate.value <= estimate.high
    with pytest.raises(DataError, match="6 of 5"):
        proportion(6, 5)


def test_perplexity_is_the_exponential_of_the_mean():
    estimate = perplexity([-1.0, -2.0, -3.0])
    assert estimate.value == pytest.approx(math.exp(2))
    assert estimate.low < estimate.value < estimate.high
    assert math.isfinite(perplexity([-1e4, -2e4]).value)


@pytest.mark.parametrize("n", [6, 15, 40])
def test_median_interval_covers(n):
    """Order statistics of an exponential distribution, whose median is log 2."""
    x = np.sort(np.random.default_rng(0).exponential(size=(4000, n)), axis=1)
    estimate = median_estimate(np.arange(1.0, n + 1))
    low, high = round(estimate.low) - 1, round(estimate.high) - 1
    covered = np.mean((x[:, low] <= math.log(2)) & (math.log(2) <= x[:, high]))
    narrower = np.mean((x[:, low + 1] <= math.log(2)) & (math.log(2) <= x[:, high - 1]))
    assert narrower < 0.95 < covered + 0.01


def test_few_rounds_are_confessed():
    estimate = median_estimate([3.0, 1.0, 2.0], unit="ms")
    assert (estimate.value, estimate.low, estimate.high) == (2.0, 1.0, 3.0)
    assert estimate.confidence == pytest.approx(0.75)
