"""Choosing the next token from one row of logits. NumPy only: the draw depends on nothing else in the batch.

Shapes: v vocabulary.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lissom.engine.sequence import Choice, Sampling

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

COLDEST = 1e-30  # a temperature below it would be 0 in single precision
MOST = 1024  # tokens that are nearly always enough for a nucleus


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
    """A token with its log-probability, and those of so many alternatives, the best first."""
    logprobs = log_softmax(logits)
    best = _largest(logprobs, alternatives)
    best = best[np.argsort(-logprobs[best], kind="stable")]
    return Choice(token=token, logprob=float(logprobs[token]), top=tuple((int(i), float(logprobs[i])) for i in best))


def log_softmax(logits: "Float[np.ndarray, ' v']") -> "Float[np.ndarray, ' v']":
    """log p_i = z_i - log Σ exp z_j, in double precision."""
    shifted = logits.astype(np.float64) - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def nucleus(weights: "Float[np.ndarray, ' k']", top_p: float) -> "Float[np.ndarray, ' k']":
    """The fewest weights whose sum reaches top_p of all (Holtzman et al. 2020, arXiv:1904.09751), 0 for the rest."""
    wanted, size = top_p * weights.sum(), min(MOST, len(weights))
    best = np.partition(weights, -size)[-size:]
    descending = np.sort(best if best.sum() >= wanted else weights)[::-1]
    count = int(descending.cumsum().searchsorted(wanted)) + 1
    kept, tokens = np.zeros_like(weights), _largest(weights, count)
    kept[tokens] = weights[tokens]
    return kept


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
    """One draw by inverting the cumulative distribution over the tokens that the filters leave, in their order."""
    tokens = _largest(logits, sampling.top_k) if sampling.top_k else None
    cumulative = _weights(logits if tokens is None else logits[tokens], sampling).cumsum()
    place = cumulative.searchsorted((1 - random.random()) * cumulative[-1])  # above 0, so nothing of weight 0 is met
    return int(place if tokens is None else tokens[place])


def _weights(logits: "Float[np.ndarray, ' k']", sampling: Sampling) -> "Float[np.ndarray, ' k']":
    """What each token weighs beside the most probable one; those that top_p and min_p drop weigh nothing.

    min_p keeps those at least that fraction of the largest (Nguyen et al. 2024, arXiv:2407.01082).
    """
    weights: np.ndarray = np.exp((logits - logits.max()) / max(sampling.temperature, COLDEST)).astype(np.float64)
    if sampling.top_p < 1:
        weights = nucleus(weights, sampling.top_p)
    if sampling.min_p:
        weights[weights < sampling.min_p] = 0
    return weights


def _largest(values: "Float[np.ndarray, ' v']", k: int) -> "Int[np.ndarray, ' k']":
    """Indices of the k largest values, in their order; of equal ones the first."""
    k = min(k, len(values))
    border = np.partition(values, -k)[-k] if k else np.inf
    above, equal = np.flatnonzero(values > border), np.flatnonzero(values == border)
    return np.sort(np.concatenate([above, equal[: k - len(above)]]))
