import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lissom.errors import DataError
from lissom.estimate import (
    BETS,
    FEWEST_FOR_T,
    Estimate,
    certify,
    fewest_examples,
    mean_estimate,
    median_estimate,
    paired_difference,
    perplexity,
    proportion,
)
from lissom.types import Budget

BUDGET = Budget(max_drop=0.01, confidence=0.95)
SCORES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=100)


def flips(n, lost, gained):
    """Scores of an original and a compressed model: `lost` right answers went wrong, `gained` went the other way."""
    original, compressed = np.ones(n), np.ones(n)
    compressed[:lost] = 0
    original[lost : lost + gained] = 0
    order = np.random.default_rng(0).permutation(n)
    return original[order], compressed[order]


def running_wealth(d, drop):
    """The definition, literally, for rows of d that are each one experiment."""
    bets = [c / (1 - drop) for c in BETS]
    return sum(np.exp(np.cumsum(np.log(1 + bet * (drop - d)), axis=1)) for bet in bets) / len(bets)


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


@pytest.mark.parametrize(("max_drop", "confidence"), [(0.01, 0.95), (0.05, 0.95), (0.01, 0.99), (0.002, 0.9)])
def test_without_flips_little_more_than_the_binomial_number_is_needed(max_drop, confidence):
    budget = Budget(max_drop=max_drop, confidence=confidence)
    fewest = fewest_examples(budget)
    binomial = math.ceil(math.log(1 - confidence) / math.log(1 - max_drop))
    assert binomial <= fewest <= 1.25 * binomial
    assert certify(*flips(fewest, 0, 0), budget).verdict == "PASS"
    short = certify(*flips(fewest - 1, 0, 0), budget)
    assert (short.verdict, short.n_more) == ("NEED MORE", 1)


def test_the_interval_is_the_wealth_inverted():
    """The upper end of the drop is where the literal definition reaches 1/α."""
    original, compressed = flips(300, 4, 2)
    drop = paired_difference(original, compressed, confidence=0.9)
    d = (original - compressed)[None]
    assert running_wealth(d, drop.high + 1e-6).max() > 1 / 0.05
    assert running_wealth(d, drop.high - 1e-6).max() < 1 / 0.05


@pytest.mark.parametrize("flipping", [0.01, 0.04, 0.2])
def test_a_drop_at_the_budget_is_rarely_passed(flipping):
    """Type I error, with looks after every one of 2,000 examples, at the boundary where it is largest."""
    rng, runs = np.random.default_rng(0), 1000
    u = rng.random((runs, 2000))
    lost = (flipping + BUDGET.max_drop) / 2
    d = np.where(u < lost, 1.0, np.where(u < flipping, -1.0, 0.0))
    passed = (running_wealth(d, BUDGET.max_drop) >= 20).any(axis=1).mean()
    failed = (running_wealth(-d, -BUDGET.max_drop) >= 20).any(axis=1).mean()
    assert passed <= 0.05
    assert failed <= 0.05


def test_few_flips_pass_soon():
    """0.3 % lost and 0.3 % gained: half of the runs are decided within 700 examples, nearly all within 3,000."""
    u = np.random.default_rng(0).random((500, 3000))
    d = np.where(u < 0.003, 1.0, np.where(u > 0.997, -1.0, 0.0))
    passed = running_wealth(d, BUDGET.max_drop) >= 20
    assert passed[:, :700].any(axis=1).mean() > 0.5
    assert passed.any(axis=1).mean() > 0.97


def test_verdicts():
    assert certify(*flips(2000, 3, 3), BUDGET).verdict == "PASS"
    assert certify(*flips(2000, 100, 3), BUDGET).verdict == "FAIL"
    undecided = certify(*flips(500, 5, 2), BUDGET)
    assert undecided.verdict == "NEED MORE"
    assert undecided.n_more is not None
    assert str(undecided).startswith(f"NEED MORE ({undecided.n_more} more examples): drop 0.60 %")


def test_the_examples_asked_for_are_enough():
    """More of the same decides, about as soon as was said."""
    original, compressed = flips(400, 1, 1)
    short = certify(original, compressed, BUDGET)
    assert short.n_more is not None
    times = math.ceil((short.n + short.n_more) / short.n)
    assert certify(np.tile(original, times), np.tile(compressed, times), BUDGET).verdict == "PASS"


def test_a_drop_that_is_the_budget_cannot_be_decided():
    certificate = certify(*flips(100, 1, 0), BUDGET)
    assert (certificate.verdict, certificate.n_more) == ("NEED MORE", None)
    with pytest.raises(DataError, match="max_drop=0"):
        fewest_examples(Budget(max_drop=0.0))


def test_bounds_scale_the_budget():
    original, compressed = flips(2000, 3, 3)
    assert certify(5 * original, 5 * compressed, BUDGET, bounds=(0.0, 5.0)) == certify(original, compressed, BUDGET)


def test_log_likelihoods_are_tested_by_t():
    rng = np.random.default_rng(0)
    original = rng.normal(-3, 0.5, 100)
    compressed = original - rng.normal(0.005, 0.01, 100)
    certificate = certify(original, compressed, BUDGET, bounds=None, relative=True)
    upper = stats.ttest_1samp(original - compressed, 0).confidence_interval(0.9).high
    assert certificate.verdict == "PASS"
    assert certificate.drop.high == pytest.approx(math.expm1(upper))
    assert certify(original, compressed - 0.02, BUDGET, bounds=None, relative=True).verdict == "FAIL"
    close = certify(original, compressed - 0.0045, BUDGET, bounds=None, relative=True)
    assert close.verdict == "NEED MORE"
    assert close.n_more is not None
    assert close.n_more > 100


def test_few_windows_prove_nothing():
    scores = -np.arange(1.0, FEWEST_FOR_T)
    certificate = certify(scores, scores, BUDGET, bounds=None, relative=True)
    assert (certificate.verdict, certificate.n_more) == ("NEED MORE", 1)
    assert fewest_examples(BUDGET, bounds=None) == FEWEST_FOR_T


@settings(max_examples=40, deadline=None)
@given(SCORES)
def test_the_interval_holds_the_mean_and_mirrors(pairs):
    original, compressed = np.array(pairs, dtype=float).T
    drop = paired_difference(original, compressed)
    mirrored = paired_difference(compressed, original)
    assert -1 <= drop.low <= drop.high <= 1
    assert (mirrored.low, mirrored.high) == pytest.approx((-drop.high, -drop.low))


@settings(max_examples=40, deadline=None)
@given(SCORES, st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_a_larger_budget_is_never_judged_worse(pairs, one, other):
    original, compressed = np.array(pairs, dtype=float).T
    order = ["FAIL", "NEED MORE", "PASS"]
    small, large = (certify(original, compressed, Budget(max_drop=drop)) for drop in sorted((one, other)))
    assert order.index(small.verdict) <= order.index(large.verdict)


@settings(max_examples=40, deadline=None)
@given(SCORES, SCORES)
def test_more_examples_never_widen_what_was_shown(first, then):
    before = paired_difference(*np.array(first, dtype=float).T)
    after = paired_difference(*np.array(first + then, dtype=float).T)
    assert after.high <= before.high
    assert after.low >= before.low


@pytest.mark.parametrize(
    ("original", "compressed", "options", "message"),
    [
        ([1.0, 0.0], [1.0], {}, "2 original and 1 compressed"),
        ([], [], {}, "one number per example"),
        ([[1.0]], [[1.0]], {}, "one number per example"),
        ([math.nan, 0.0], [0.0, 0.0], {}, "1 of 2 are not finite"),
        ([1.5], [0.0], {}, "outside the bounds"),
        ([1.0], [0.0], {"bounds": (1.0, 0.0)}, "must rise"),
        ([1.0], [0.0], {"relative": True}, "be None for relative"),
    ],
)
def test_unusable_scores_are_named(original, compressed, options, message):
    with pytest.raises(DataError, match=message):
        certify(original, compressed, BUDGET, **options)
