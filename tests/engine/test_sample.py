"""Sampling against the literal definition of the distribution that it draws from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lissom.engine.sample import choose, log_softmax
from lissom.engine.sequence import Sampling
from lissom.errors import DataError

LOGITS = np.array([0.1, 2.0, -1.0, 1.5, 0.7, -3.0], dtype=np.float32)
DRAWS = 4_000


def expected(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The oracle: each filter as its paper says it, one token at a time."""
    p = np.exp(logits.astype(float) / sampling.temperature)
    order = sorted(range(len(p)), key=lambda i: -p[i])
    order = order[: sampling.top_k or len(p)]
    p = p / sum(p[i] for i in order)
    kept, mass = [], 0.0
    for i in order:
        if mass < sampling.top_p and p[i] >= sampling.min_p * p[order[0]]:
            kept.append(i)
        mass += p[i]
    result = np.zeros(len(p))
    result[kept] = p[kept] / p[kept].sum()
    return result


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(top_k=3),
        Sampling(top_p=0.8),
        Sampling(min_p=0.2),
        Sampling(temperature=1.7, top_k=5, top_p=0.9, min_p=0.1),
    ],
)
def test_draws_from_the_defined_distribution(sampling: Sampling) -> None:
    random = np.random.default_rng(0)
    drawn = np.bincount([choose(LOGITS, sampling, random).token for _ in range(DRAWS)], minlength=len(LOGITS)) / DRAWS
    p = expected(LOGITS, sampling)
    assert (drawn[p == 0] == 0).all()
    assert np.abs(drawn - p).max() < 5 * np.sqrt(0.25 / DRAWS)


@settings(deadline=None, max_examples=50)
@given(
    arrays(np.float32, st.integers(1, 20), elements=st.floats(-50, 50, width=32, allow_subnormal=False)),
    st.integers(0, 9),
)
def test_the_coldest_draws_and_the_narrowest_filters_are_greedy(logits: np.ndarray, seed: int) -> None:
    random = np.random.default_rng(seed)
    greedy = choose(logits, Sampling(temperature=0.0), random).token
    assert greedy == int(logits.argmax())
    assert choose(logits, Sampling(top_k=1), random).token == greedy
    for narrow in (Sampling(top_p=0.0), Sampling(min_p=1.0)):
        assert logits[choose(logits, narrow, random).token] == pytest.approx(logits[greedy], abs=1e-6)


def test_log_probabilities_are_the_models_own() -> None:
    sampling = Sampling(temperature=0.3, top_k=1, logprobs=3)
    choice = choose(LOGITS, sampling, np.random.default_rng(0))
    reference = np.log(np.exp(LOGITS.astype(float)) / np.exp(LOGITS.astype(float)).sum())
    assert choice.logprob == pytest.approx(reference[1])
    assert [token for token, _ in choice.top] == [1, 3, 4]
    assert [logprob for _, logprob in choice.top] == pytest.approx(reference[[1, 3, 4]])
    assert np.exp(log_softmax(LOGITS)).sum() == pytest.approx(1)


def test_banned_tokens_are_never_chosen() -> None:
    random = np.random.default_rng(0)
    assert choose(LOGITS, Sampling(temperature=0.0), random, banned=[1]).token == 3
    assert 1 not in {choose(LOGITS, Sampling(), random, banned=[1]).token for _ in range(200)}


def test_asking_for_no_alternatives_still_gives_the_log_probability() -> None:
    choice = choose(LOGITS, Sampling(temperature=0.0, logprobs=0), np.random.default_rng(0))
    assert choice.top == ()
    assert choice.logprob < 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_p", 1.5),
        ("top_k", -1),
        ("min_p", 2.0),
        ("seed", -1),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("logprobs", -1),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(DataError, match=f"{name}={value}"):
        Sampling(**{name: value})


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(DataError, match="empty string"):
        Sampling(stop=("",))
