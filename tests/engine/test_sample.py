"""Sampling against the literal definition of the distribution that it draws from."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lissom.engine.kernels import native
from lissom.engine.sample import BLOCK, among, choose, nucleus
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


@settings(max_examples=50)
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


@settings(max_examples=50)
@given(st.integers(0, 9), st.sampled_from([0.0, 1.0, 4.0]), st.floats(0, 1))
def test_the_nucleus_is_the_fewest_that_reach_its_sum(seed: int, spread: float, top_p: float) -> None:
    """Flat distributions need nearly all tokens, steep ones a few."""
    weights = np.exp(np.random.default_rng(seed).normal(size=5000) * spread)
    places = nucleus(weights, top_p * weights.sum())
    left, dropped = weights[places], np.delete(weights, places)
    assert left.min() >= dropped.max(initial=0)
    assert left.sum() >= top_p * weights.sum() * (1 - 1e-9)
    assert left.sum() - left.min() <= top_p * weights.sum() * (1 + 1e-9)


def test_filters_that_drop_nothing_change_no_draw() -> None:
    logits = np.random.default_rng(0).normal(size=3000).astype(np.float32)
    draws = {
        tuple(choose(logits, sampling, np.random.default_rng(seed)).token for seed in range(50))
        for sampling in (Sampling(), Sampling(top_k=3000), Sampling(top_p=1 - 1e-12), Sampling(min_p=1e-9))
    }
    assert len(draws) == 1


MANY = np.random.default_rng(7).normal(size=3 * BLOCK + 100).astype(np.float32) * 3


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7, min_p=1e-4),
        Sampling(top_p=0.9),
        Sampling(top_k=900, top_p=0.8),
        Sampling(top_k=500, min_p=0.01),
    ],
)
@pytest.mark.parametrize("native_library", [True, False])
def test_a_draw_from_many_tokens_inverts_the_distribution(
    sampling: Sampling, native_library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the definition: token i is drawn where the cumulative distribution first reaches a number from 0 to 1."""
    if not native_library:
        monkeypatch.setattr(native, "library", lambda: None)
    reached = expected(MANY, sampling).cumsum()
    for seed in range(60):
        share = 1 - np.random.default_rng(seed).random()
        token = choose(MANY, sampling, np.random.default_rng(seed)).token
        assert reached[token] >= share - 1e-5
        assert token == 0 or reached[token - 1] < share + 1e-5
        assert token == 0 or reached[token] > reached[token - 1]


@pytest.mark.parametrize("kernel", native.kernels())
@given(size=st.integers(1, 70), block=st.integers(1, 40), temperature=st.floats(0.01, 100))
def test_the_kernel_weighs_as_numpy_does(kernel: str, size: int, block: int, temperature: float) -> None:
    logits, found = MANY[:size].copy(), native.library()
    assert found is not None
    logits[size // 2] = -np.inf
    best, sums = float(logits[np.isfinite(logits)].max(initial=-50)), np.empty(-(-size // block))
    given_ = logits.ctypes.data, size, block, best, 1 / temperature, sums.ctypes.data
    found.lissom_likely(*given_, native.KERNELS.index(kernel))
    parts = np.split(logits.astype(float), range(block, size, block))
    assert sums == pytest.approx([np.exp((part - best) / temperature).sum() for part in parts], rel=1e-4, abs=1e-30)


def test_the_coldest_temperature_that_can_be_written_draws_the_best() -> None:
    assert choose(LOGITS, Sampling(temperature=5e-324), np.random.default_rng(0)).token == 1


PROMPT, GENERATED = [0, 2, 2], [1, 3, 3, 1, 1]


def adjusted(sampling: Sampling) -> list[float]:
    """The oracle: what is written above each penalty where it was proposed, one token at a time."""
    scores = []
    for token, score in enumerate(LOGITS.tolist()):
        if token in PROMPT + GENERATED:
            score = score / sampling.repetition_penalty if score > 0 else score * sampling.repetition_penalty
        score -= GENERATED.count(token) * sampling.frequency_penalty
        score -= (token in GENERATED) * sampling.presence_penalty
        scores.append(score + sampling.logit_bias.get(token, 0))
    return scores


@pytest.mark.parametrize(
    "knobs",
    [
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.5},
        {"presence_penalty": 1.2},
        {"frequency_penalty": 0.6},
        {"frequency_penalty": -0.6},
        {"logit_bias": {1: -100, 5: 4.5}},
        {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2, "logit_bias": {4: 0.5}},
    ],
)
def test_penalties_and_biases_change_the_scores_as_defined(knobs: dict[str, Any]) -> None:
    scores = adjusted(Sampling(**knobs))
    before = LOGITS.copy()

    def chosen(**more: Any) -> int:
        sampling = Sampling(**knobs, **more)
        return choose(LOGITS, sampling, np.random.default_rng(0), prompt=PROMPT, generated=GENERATED).token

    assert chosen(temperature=0.0) == int(np.argmax(scores))
    assert chosen(seed=0) == choose(np.array(scores, dtype=np.float32), Sampling(), np.random.default_rng(0)).token
    assert (before == LOGITS).all()


def test_penalties_before_anything_is_generated() -> None:
    sampling = Sampling(temperature=0.0, presence_penalty=2, frequency_penalty=2, repetition_penalty=3.0)
    assert choose(LOGITS, sampling, np.random.default_rng(0), prompt=[1]).token == 3
    assert choose(LOGITS, sampling, np.random.default_rng(0)).token == 1


def test_log_probabilities_are_the_models_own() -> None:
    sampling = Sampling(temperature=0.3, top_k=1, logprobs=3, logit_bias={0: 1.0})
    choice = choose(LOGITS, sampling, np.random.default_rng(0))
    reference = np.log(np.exp(LOGITS.astype(float)) / np.exp(LOGITS.astype(float)).sum())
    assert choice.logprob == pytest.approx(reference[1])
    assert [token for token, _ in choice.top] == [1, 3, 4]
    assert [logprob for _, logprob in choice.top] == pytest.approx(reference[[1, 3, 4]])
    every = among(LOGITS, 0, len(LOGITS)).top
    assert sum(np.exp(logprob) for _, logprob in every) == pytest.approx(1)


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
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("seed", -1),
        ("max_tokens", -1),
        ("min_tokens", -1),
        ("logprobs", -1),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(DataError, match=f"{name}={value}"):
        Sampling(**{name: value})


def test_a_bias_out_of_range_is_named_with_its_token() -> None:
    with pytest.raises(DataError, match="logit_bias of token 7=101 must be from -100 to 100"):
        Sampling(logit_bias={7: 101})


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(DataError, match="empty string"):
        Sampling(stop=("",))
