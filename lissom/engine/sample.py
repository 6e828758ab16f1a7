"""Choosing the next token from one row of logits, without PyTorch: the draw depends on nothing else in the batch.

Shapes: v vocabulary.
"""

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lissom.engine.kernels import native
from lissom.engine.sequence import Choice, Sampling

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

COLDEST = 1e-30  # a temperature below it would be 0 in single precision
BLOCK = 8192  # tokens looked at together: arrays as long as a vocabulary would each be fresh memory from the system
FEW = 64  # tokens of which the largest is looked at first
SLACK = 1e-3  # of a logarithm, for what is rounded


def choose(
    logits: "Float[np.ndarray, ' v']",
    sampling: Sampling,
    random: np.random.Generator,
    *,
    prompt: Sequence[int] = (),
    generated: Sequence[int] = (),
    banned: Collection[int] = (),
    allowed: "Bool[np.ndarray, ' v'] | None" = None,
) -> Choice:
    """The next token, its log-probability and the best alternatives; only `allowed` tokens, never `banned` ones.

    The penalties look at the tokens of `prompt` and those `generated` after it.
    """
    scores = _scores(logits, sampling, prompt, generated, banned, allowed)
    token = int(scores.argmax()) if sampling.temperature == 0 else _draw(scores, sampling, random)
    if sampling.logprobs is None:
        return Choice(token=token, logprob=0.0)
    return among(logits, token, sampling.logprobs)


def among(logits: "Float[np.ndarray, ' v']", token: int, alternatives: int) -> Choice:
    """A token with its log-probability, z - log Σ exp z, and those of so many alternatives, the best first."""
    best = logits.max()
    norm = float(best) + math.log(_sums(logits, best, 1.0)[-1])
    top = _largest(logits, alternatives)
    top = top[np.argsort(-logits[top], kind="stable")]
    return Choice(
        token=token, logprob=float(logits[token]) - norm, top=tuple((int(i), float(logits[i]) - norm) for i in top)
    )


def nucleus(weights: "Float[np.ndarray, ' k']", wanted: float) -> "Int[np.ndarray, ' n']":
    """Places of the fewest weights whose sum reaches what is wanted (Holtzman et al. 2020, arXiv:1904.09751)."""
    reached = np.sort(weights)[::-1].cumsum(dtype=np.float64)
    return _largest(weights, int(reached.searchsorted(wanted)) + 1)


def _scores(
    logits: "Float[np.ndarray, ' v']",
    sampling: Sampling,
    prompt: Sequence[int],
    generated: Sequence[int],
    banned: Collection[int],
    allowed: "Bool[np.ndarray, ' v'] | None",
) -> "Float[np.ndarray, ' v']":
    """The logits after penalties, biases and bans; the logits themselves where there are none.

    repetition_penalty r: z / r where z > 0, else z r, for each token seen (Keskar et al. 2019, arXiv:1909.05858);
    presence p and frequency f: z - p - f c, for each token generated c times (the OpenAI API).
    """
    if not (sampling.adjusts or banned) and allowed is None:
        return logits
    scores = logits.copy()
    if sampling.repetition_penalty != 1:
        seen = np.array([*prompt, *generated], dtype=np.int64)
        penalty = sampling.repetition_penalty
        scores[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        seen, counts = np.unique(np.array(generated, dtype=np.int64), return_counts=True)
        scores[seen] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    scores[list(sampling.logit_bias)] += np.array(list(sampling.logit_bias.values()))
    scores[list(banned)] = -np.inf
    return scores if allowed is None else np.where(allowed, scores, -np.inf)


def _draw(logits: "Float[np.ndarray, ' v']", sampling: Sampling, random: np.random.Generator) -> int:
    """One draw from the tokens that the filters leave, in their order."""
    share = 1 - random.random()  # above 0, so nothing of weight 0 is met
    tokens = _left(logits, sampling)
    if tokens is None:
        return _place(logits, sampling.temperature, share)
    return int(tokens[_place(logits[tokens], sampling.temperature, share)])


def _left(logits: "Float[np.ndarray, ' v']", sampling: Sampling) -> "Int[np.ndarray, ' k'] | None":
    """The tokens that the filters leave, in their order; None for all.

    min_p leaves those that weigh at least that fraction of the heaviest (Nguyen et al. 2024, arXiv:2407.01082).
    """
    tokens = _largest(logits, sampling.top_k) if sampling.top_k else None
    if sampling.top_p == 1 and not sampling.min_p:
        return tokens
    logits = logits if tokens is None else logits[tokens]
    best, total, lightest = logits.max(), 0.0, sampling.min_p
    if sampling.top_p < 1:
        # what weighs less than the mean share of what may be left out is left out: together it is less than that
        total = float(_sums(logits, best, sampling.temperature)[-1])
        lightest = max(lightest, (1 - sampling.top_p) * total / len(logits))
    border = best + max(sampling.temperature, COLDEST) * (math.log(lightest) - SLACK)
    some = np.flatnonzero(logits >= border)
    weights = _weights(logits[some], best, sampling.temperature)
    if sampling.top_p < 1:
        kept = nucleus(weights, sampling.top_p * total)
        some, weights = some[kept], weights[kept]
    some = some[weights >= sampling.min_p]
    return some if tokens is None else tokens[some]


def _place(logits: "Float[np.ndarray, ' k']", temperature: float, share: float) -> int:
    """Where the cumulative distribution reaches that share, which is above 0."""
    best = logits.max()
    sums = _sums(logits, best, temperature)
    wanted = share * sums[-1]
    block = int(sums.searchsorted(wanted))
    begin = block * BLOCK
    reached = _weights(logits[begin : begin + BLOCK], best, temperature).cumsum(dtype=np.float64)
    rest = wanted - (sums[block - 1] if block else 0.0)
    return begin + int(reached.searchsorted(min(rest, reached[-1])))


def _sums(logits: "Float[np.ndarray, ' k']", best: np.floating[Any], temperature: float) -> "Float[np.ndarray, ' b']":
    """What all tokens weigh up to the end of each block."""
    begins = range(0, len(logits), BLOCK)
    if (found := native.library()) is not None and logits.dtype == np.float32 and logits.flags.c_contiguous:
        sums, given = np.empty(len(begins)), (logits.ctypes.data, len(logits), BLOCK)
        by = 1 / max(temperature, COLDEST)
        found.lissom_likely(*given, best, by, sums.ctypes.data, native.KERNELS.index(native.kernels()[-1]))
    else:
        sums = np.array([_weights(logits[at : at + BLOCK], best, temperature).sum(dtype=np.float64) for at in begins])
    return sums.cumsum()


def _weights(
    logits: "Float[np.ndarray, ' k']", best: np.floating[Any], temperature: float
) -> "Float[np.ndarray, ' k']":
    """What each token weighs beside the most probable one."""
    weights = logits - best
    weights /= max(temperature, COLDEST)
    return np.asarray(np.exp(weights, out=weights))


def _largest(values: "Float[np.ndarray, ' v']", k: int) -> "Int[np.ndarray, ' k']":
    """Indices of the k largest values, in their order; of equal ones the first."""
    k = min(k, len(values))
    if not k:
        return np.empty(0, np.int64)
    peaks = np.maximum.reduceat(values, np.arange(0, len(values), FEW))
    if k <= len(peaks):  # as many values are at least as large as the peak in that place
        some = np.flatnonzero(values >= np.partition(peaks, -k)[-k])
        return np.asarray(some[_largest_of(values[some], k)])
    return _largest_of(values, k)


def _largest_of(values: "Float[np.ndarray, ' v']", k: int) -> "Int[np.ndarray, ' k']":
    border = np.partition(values, -k)[-k]
    above, equal = np.flatnonzero(values > border), np.flatnonzero(values == border)
    return np.sort(np.concatenate([above, equal[: k - len(above)]]))
