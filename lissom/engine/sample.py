"""Choosing the next token from one row of logits. NumPy only: the draw depends on nothing else in the batch.

Shapes: v vocabulary.
"""

from collections.abc import Collection

import numpy as np
from jaxtyping import Float

from lissom.engine.sequence import Choice, Sampling


def choose(
    logits: Float[np.ndarray, " v"],
    sampling: Sampling,
    random: np.random.Generator,
    *,
    banned: Collection[int] = (),
) -> Choice:
    """The next token, its log-probability and the best alternatives; `banned` tokens are never chosen."""
    allowed = logits
    if banned:
        allowed = logits.copy()
        allowed[list(banned)] = -np.inf
    token = int(allowed.argmax()) if sampling.temperature == 0 else _draw(allowed, sampling, random)
    if sampling.logprobs is None:
        return Choice(token=token, logprob=0.0)
    logprobs = log_softmax(logits)
    best = _largest(logprobs, sampling.logprobs)
    return Choice(token=token, logprob=float(logprobs[token]), top=tuple((int(i), float(logprobs[i])) for i in best))


def log_softmax(logits: Float[np.ndarray, " v"]) -> Float[np.ndarray, " v"]:
    """log p_i = z_i - log Σ exp z_j, in double precision."""
    shifted = logits.astype(np.float64) - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _draw(logits: Float[np.ndarray, " v"], sampling: Sampling, random: np.random.Generator) -> int:
    """One draw by inverting the cumulative distribution over the tokens that the filters leave, best first."""
    order = _largest(logits, sampling.top_k or len(logits))
    p = np.exp(log_softmax(logits[order] / sampling.temperature))
    kept = _filtered(p, sampling)
    cumulative = np.cumsum(p[:kept])
    return int(order[np.searchsorted(cumulative, random.random() * cumulative[-1], side="right").clip(max=kept - 1)])


def _filtered(p: Float[np.ndarray, " k"], sampling: Sampling) -> int:
    """How many of the descending probabilities top_p and min_p keep; never none.

    top_p keeps the fewest whose sum reaches it (Holtzman et al. 2020, arXiv:1904.09751); min_p those at least that
    fraction of the largest (Nguyen et al. 2024, arXiv:2407.01082).
    """
    nucleus = len(p) if sampling.top_p >= 1 else int(np.searchsorted(np.cumsum(p), sampling.top_p)) + 1
    likely = int((p >= sampling.min_p * p[0]).sum())
    return max(1, min(nucleus, likely))


def _largest(values: Float[np.ndarray, " v"], k: int) -> np.ndarray:
    """Indices of the k largest values, best first, the lower index first among equals."""
    k = min(k, len(values))
    if k < len(values):
        border = np.partition(values, len(values) - k)[len(values) - k] if k else np.inf
        candidates = np.flatnonzero(values >= border)
    else:
        candidates = np.arange(len(values))
    return np.asarray(candidates[np.argsort(-values[candidates], kind="stable")][:k])
