import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissom.errors import DataError
from lissom.estimate import Certifier, certify, fewest_examples, joint, paired_difference
from lissom.estimate.student import FEWEST, Limits
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


@pytest.mark.parametrize(("max_drop", "confidence"), [(0.01, 0.95), (0.05, 0.95), (0.01, 0.99), (0.002, 0.9)])
def test_without_flips_little_more_than_the_binomial_number_is_needed(max_drop, confidence):
    budget = Budget(max_drop=max_drop, confidence=confidence)
    fewest = fewest_examples(budget)
    binomial = math.ceil(math.log(1 - confidence) / math.log(1 - max_drop))
    assert binomial <= fewest <= 1.25 * binomial
    for planned in (None, fewest):
        assert certify(*flips(fewest, 0, 0), budget, planned=planned).verdict == "PASS"
    short = certify(*flips(fewest - 1, 0, 0), budget)
    assert (short.verdict, short.n_more) == ("NEED MORE", 1)


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
    certificate = certify(original, compressed, BUDGET, bounds=None, logarithms=True)
    limits = Limits(0.05)
    limits.add(original - compressed, np.ones(100))
    assert certificate.verdict == "PASS"
    assert certificate.drop.high == pytest.approx(math.expm1(limits.high))
    assert certify(original, compressed - 0.02, BUDGET, bounds=None, logarithms=True).verdict == "FAIL"
    close = certify(original, compressed - 0.0045, BUDGET, bounds=None, logarithms=True)
    assert close.verdict == "NEED MORE"
    assert close.n_more is not None
    assert close.n_more > 100


def test_few_windows_prove_nothing():
    scores = -np.arange(1.0, FEWEST)
    certificate = certify(scores, scores, BUDGET, bounds=None, logarithms=True)
    assert (certificate.verdict, certificate.n_more) == ("NEED MORE", 1)
    assert fewest_examples(BUDGET, bounds=None) == FEWEST


def test_a_relative_budget_is_a_share_of_what_the_original_gets_right():
    """40 % right, of which a hundredth is lost: 0.4 points."""
    original = np.tile([1.0, 0.0, 0.0, 1.0, 0.0], 2000)
    compressed = original.copy()
    compressed[np.flatnonzero(original)[::100]] = 0
    found = certify(original, compressed, Budget(max_drop=0.02, relative=True))
    assert found.drop.value == pytest.approx(0.01)
    assert found.verdict == "PASS"
    assert str(found).endswith("budget 2.00% of the original's at 0.95 confidence")
    assert certify(original, compressed, Budget(max_drop=0.005, relative=True)).verdict == "FAIL"
    assert certify(original, compressed, Budget(max_drop=0.008)).verdict == "PASS"
    unbounded = certify(original, compressed, Budget(max_drop=0.02, relative=True), bounds=None)
    assert unbounded.verdict == "PASS"
    assert unbounded.drop.value == pytest.approx(0.01)


def test_clusters_are_the_units():
    """Ten questions of each document fare alike: 40 documents are 40 units, not 400."""
    original, compressed = flips(40, 0, 0)
    together = certify(np.repeat(original, 10), np.repeat(compressed, 10), BUDGET, clusters=np.repeat(range(40), 10))
    assert together == certify(original, compressed, BUDGET)
    assert (together.verdict, together.n) == ("NEED MORE", 40)
    assert certify(np.repeat(original, 10), np.repeat(compressed, 10), BUDGET).verdict == "PASS"


def test_a_cluster_counts_once_it_is_whole():
    certifier = Certifier(BUDGET, clusters=["a", "a", "b", "a", "b"])
    certifier.add([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    with pytest.raises(DataError, match="found none"):
        _ = certifier.certificate
    certifier.add([1.0], [0.0])
    assert certifier.certificate.n == 1
    certifier.add([1.0], [1.0])
    assert certifier.certificate.n == 2
    assert certifier.certificate.drop.value == pytest.approx(1 / 5)
    with pytest.raises(DataError, match="5 labels for 6 examples"):
        certifier.add([1.0], [1.0])


@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
def test_clusters_keep_what_is_promised(bounds):
    """Drops of a document's questions go together, and long documents lose more; the drop of all is the budget."""
    rng = np.random.default_rng(0)
    passed, runs = 0, 200
    for _ in range(runs):
        sizes = rng.integers(1, 11, 150)
        lost = rng.random(150) < 0.4 * sizes / 7  # E[size · 0.4 size / 7] = 0.4 E[size], as E[size²] = 7 E[size]
        labels = np.repeat(range(150), sizes)
        ones = np.ones(labels.size)
        verdict = certify(ones, 1 - lost[labels], Budget(max_drop=0.4), bounds=bounds, clusters=labels).verdict
        passed += verdict == "PASS"
    assert passed <= 0.05 * runs + 2 * math.sqrt(0.05 * 0.95 * runs)


def test_all_metrics_must_pass():
    good, bad = certify(*flips(2000, 3, 3), BUDGET), certify(*flips(2000, 100, 3), BUDGET)
    short = certify(*flips(100, 0, 0), BUDGET)
    assert joint({"accuracy": good, "blimp": good}).verdict == "PASS"
    both = joint({"accuracy": good, "blimp": short})
    assert (both.verdict, both.metric, both.n_more) == ("NEED MORE", "blimp", short.n_more)
    failed = joint({"accuracy": short, "blimp": good, "lambada": bad})
    assert (failed.verdict, failed.metric, failed.n_more, failed.n) == ("FAIL", "lambada", 0, 2000)
    assert [line.split(":")[0].split(" (")[0] for line in str(failed).splitlines()] == ["NEED MORE", "PASS", "FAIL"]
    assert "drop of lambada" in str(failed)
    with pytest.raises(DataError, match="at least one metric"):
        joint({})


@settings(max_examples=40)
@given(SCORES)
def test_the_interval_holds_the_mean_and_mirrors(pairs):
    original, compressed = np.array(pairs, dtype=float).T
    drop = paired_difference(original, compressed)
    mirrored = paired_difference(compressed, original)
    assert -1 <= drop.low <= drop.high <= 1
    assert (mirrored.low, mirrored.high) == pytest.approx((-drop.high, -drop.low))


@settings(max_examples=40)
@given(SCORES, st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_a_larger_budget_is_never_judged_worse(pairs, one, other):
    original, compressed = np.array(pairs, dtype=float).T
    order = ["FAIL", "NEED MORE", "PASS"]
    small, large = (certify(original, compressed, Budget(max_drop=drop)) for drop in sorted((one, other)))
    assert order.index(small.verdict) <= order.index(large.verdict)


@settings(max_examples=40)
@given(SCORES, st.booleans(), st.sampled_from([(0.0, 1.0), None]), st.lists(st.integers(1, 99), max_size=5))
def test_parts_are_judged_as_the_whole(pairs, relative, bounds, cuts):
    scores = np.array(pairs, dtype=float).T
    clusters = np.arange(len(pairs)) // 3
    budget = Budget(max_drop=0.1, relative=relative)
    certifier = Certifier(budget, bounds=bounds, clusters=clusters)
    for part in np.split(scores, sorted(cuts), axis=1):
        if part.size:
            certifier.add(*part)
    assert certifier.certificate == certify(*scores, budget, bounds=bounds, clusters=clusters)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 9)), min_size=1), st.permutations(range(10)))
def test_names_of_clusters_say_nothing(examples, names):
    original, compressed, labels = np.array(examples, dtype=float).T
    renamed = np.array(names)[labels.astype(int)]
    budget = Budget(max_drop=0.1)
    found = [certify(original, compressed, budget, clusters=each) for each in (labels, renamed, map_names(renamed))]
    assert found[0] == found[1] == found[2]


def map_names(labels):
    return [f"document {label}" for label in labels]


@settings(max_examples=40)
@given(SCORES, st.floats(0.001, 0.5), st.sampled_from([(0.0, 1.0), None]), st.booleans())
def test_the_verdict_is_where_the_interval_lies(pairs, max_drop, bounds, relative):
    budget = Budget(max_drop=max_drop, confidence=0.6, relative=relative)
    found = certify(*np.array(pairs, dtype=float).T, budget, bounds=bounds)
    expected = "FAIL" if found.drop.low > max_drop else "PASS" if found.drop.high <= max_drop else "NEED MORE"
    assert found.verdict == expected


@settings(max_examples=40)
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
        ([1.0], [0.0], {"logarithms": True}, "be None for logarithms"),
        ([1.0], [0.0], {"clusters": [[1]]}, "one label per example"),
        ([1.0, 1.0], [0.0, 1.0], {"clusters": [1]}, "1 labels for 2 examples"),
    ],
)
def test_unusable_scores_are_named(original, compressed, options, message):
    with pytest.raises(DataError, match=message):
        certify(original, compressed, BUDGET, **options)


def test_what_may_be_negative_has_no_relative_drop():
    with pytest.raises(DataError, match="must begin at 0"):
        certify([1.0], [0.0], Budget(relative=True), bounds=(-1.0, 1.0))
