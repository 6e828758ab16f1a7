"""No naked numbers: a measurement with its interval, and the certificate that a budget was kept.

Scores are per example and higher is better. The same examples are scored by the original and by the compressed model,
so that the drop is the mean of the paired differences d = original - compressed: what both get right or wrong cancels.

Bounded scores (accuracy) are tested by betting (Waudby-Smith and Ramdas, JRSSB 2024, arXiv:2010.09686, section 4 and
the diversified bets of its appendix B). Against the hypothesis "the mean of d is ε or more", d in [-1, 1], a gambler
puts the fraction c of all that can be lost on each example in turn; the wealth, averaged over a fixed table of c,

    W_t = mean over c of  Π_{i≤t} (1 + c · (ε - d_i) / (1 - ε))

stays below 1/α for ever with probability 1 - α if the hypothesis holds. So ε is an upper bound for the drop as soon as
W_t reached 1/α once, at any time: looking early and adding examples later costs nothing. One fixed table does better
than a bet learnt on the way, which needs many examples to recover from a bold start.

Unbounded scores (log likelihood per window) are tested by Student's t on the paired differences.

Shapes: n examples, c bets.
"""

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lissom.errors import DataError
from lissom.types import Budget

Bounds: TypeAlias = tuple[float, float] | None
Verdict: TypeAlias = Literal["PASS", "FAIL", "NEED MORE"]
Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]  # no NDArray: from numpy 2.5 on it is no class

# Half of the bets are bolder than 0.87: models that hardly differ are passed after few examples. The rest thins out
# towards 0.01, for models that differ often, in both directions.
BETS = (1 - ((np.arange(16) + 0.5) / 16) ** 4) ** 2
FEWEST_FOR_T = 20  # below, the distribution of a mean is too far from a normal one for Student's t
OUT_OF_REACH = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A measured value, and the interval that holds the true one with the stated confidence; n independent samples."""

    value: float
    low: float
    high: float
    n: int
    unit: str = ""
    confidence: float = 0.95

    def through(self, function: Callable[[float], float], unit: str | None = None) -> "Estimate":
        """The estimate of a monotone function of the value."""
        low, high = sorted((function(self.low), function(self.high)))
        return Estimate(
            value=function(self.value),
            low=low,
            high=high,
            n=self.n,
            unit=self.unit if unit is None else unit,
            confidence=self.confidence,
        )

    def __format__(self, spec: str) -> str:
        """`f"{e:.1%}"` is "91.5 % [89.6, 93.1] n=1000"; any other spec of a float shows the unit."""
        scale, unit, spec = (100, "%", spec[:-1] + "f") if spec.endswith("%") else (1, self.unit, spec or ".4g")
        value, low, high = (format(scale * number, spec) for number in (self.value, self.low, self.high))
        return f"{value}{' ' * bool(unit)}{unit} [{low}, {high}] n={self.n}"

    def __str__(self) -> str:
        """Four digits: "12.3 ms [12.1, 12.6] n=15"."""
        return format(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Whether a drop stays inside a budget, with the confidence that was asked for.

    `drop` and `max_drop` are on the budget's scale, a fraction. Each end of `drop` holds with `confidence`, both
    together with 2 · confidence - 1. The verdict is PASS when the upper end is at most `max_drop`, FAIL when the lower
    end is above it. `n_more` is about how many further examples would decide: 0 when they did, None when no attainable
    number would.
    """

    verdict: Verdict
    drop: Estimate
    n: int
    n_more: int | None
    confidence: float
    max_drop: float
    method: str

    def __str__(self) -> str:
        """One line: the verdict, the drop and the budget."""
        more = f" ({self.n_more} more examples)" if self.n_more else ""
        return (
            f"{self.verdict}{more}: drop {self.drop:.2%}, budget {self.max_drop:.2%} at {self.confidence:g} confidence"
        )


def mean_estimate(samples: ArrayLike, *, unit: str = "", confidence: float = 0.95) -> Estimate:
    """The mean of independent samples, with Student's interval; a single sample says nothing about its spread."""
    x = _samples(samples)
    mean, half = float(x.mean()), math.inf
    if x.size > 1:
        half = _student((1 + confidence) / 2, x.size) * float(x.std(ddof=1)) / math.sqrt(x.size)
    return Estimate(value=mean, low=mean - half, high=mean + half, n=x.size, unit=unit, confidence=confidence)


def proportion(hits: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """A fraction of n examples, with the score interval of Wilson (JASA 1927)."""
    if not 0 <= hits <= n or n == 0:
        raise DataError(f"proportion: {hits} of {n} examples is no fraction")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # The ends touch 0 and 1 exactly when no or all examples hit; rounding must not move them past the value.
    low, high = min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share)
    return Estimate(value=share, low=low, high=high, n=n, confidence=confidence)


def perplexity(log_likelihood: ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """exp(-mean log likelihood per token) over windows of equal length, which are the independent samples."""
    return mean_estimate(log_likelihood, confidence=confidence).through(lambda mean: 1 + _expm1(-mean))


def median_estimate(samples: ArrayLike, *, unit: str = "", confidence: float = 0.95) -> Estimate:
    """The median, with the interval between two order statistics, which assumes no distribution.

    The k-th smallest and k-th largest of n samples hold the median between them with probability 1 - 2 P(B < k),
    B binomial(n, 1/2). Below six samples even the whole range holds less than 95 %: the estimate then says how much.
    """
    x = np.sort(_samples(samples))
    below = np.cumsum([math.comb(x.size, k) / 2**x.size for k in range(x.size)])
    k = max(1, int(np.searchsorted(below, (1 - confidence) / 2, side="right")))
    confidence = min(confidence, 1 - 2 * float(below[0]))
    low, high = float(x[k - 1]), float(x[-k])
    return Estimate(value=float(np.median(x)), low=low, high=high, n=x.size, unit=unit, confidence=confidence)


def paired_difference(
    original: ArrayLike,
    compressed: ArrayLike,
    *,
    bounds: Bounds = (0.0, 1.0),
    relative: bool = False,
    confidence: float = 0.95,
) -> Estimate:
    """The mean drop from the original's scores to the compressed model's, on the scale of a budget.

    Bounded scores: a fraction of their range. Unbounded ones: as they are, or with `relative` the scores are logarithms
    and the drop is relative, exp(mean d) - 1: that of perplexity for log likelihoods per token.

    Raises:
        DataError: the scores do not pair up, are not finite, or leave the bounds.
    """
    d = _drops(original, compressed, bounds, relative)
    if bounds is None:
        drop = mean_estimate(d, confidence=confidence)
        return drop.through(_expm1) if relative else drop
    alpha = (1 - confidence) / 2
    low, high = -_ruled_out(-d, alpha), _ruled_out(d, alpha)
    return Estimate(value=float(d.mean()), low=low, high=high, n=d.size, confidence=confidence)


def certify(
    original: ArrayLike,
    compressed: ArrayLike,
    budget: Budget,
    *,
    bounds: Bounds = (0.0, 1.0),
    relative: bool = False,
) -> Certificate:
    """Whether the compressed model stays inside the budget: PASS, FAIL, or NEED MORE examples.

    A model that drops more than the budget is passed with probability at most 1 - confidence, one that drops less is
    failed as rarely. With bounded scores this holds however often one looks while examples are added; with unbounded
    ones for a number of examples fixed beforehand.

    Raises:
        DataError: the scores do not pair up, are not finite, or leave the bounds.
    """
    drop = paired_difference(
        original, compressed, bounds=bounds, relative=relative, confidence=2 * budget.confidence - 1
    )
    verdict: Verdict = "NEED MORE"
    if bounds is not None or drop.n >= FEWEST_FOR_T:
        verdict = "FAIL" if drop.low > budget.max_drop else "PASS" if drop.high <= budget.max_drop else "NEED MORE"
    d = _drops(original, compressed, bounds, relative)
    return Certificate(
        verdict=verdict,
        drop=drop,
        n=drop.n,
        n_more=_more(d, budget, bounds, relative) if verdict == "NEED MORE" else 0,
        confidence=budget.confidence,
        max_drop=budget.max_drop,
        method="Student t, paired, one-sided" if bounds is None else "betting e-process, paired (arXiv:2010.09686)",
    )


def fewest_examples(budget: Budget, *, bounds: Bounds = (0.0, 1.0)) -> int:
    """The smallest number of examples with which any model can pass: one that never differs from the original.

    Raises:
        DataError: no number is enough, because no drop at all is allowed.
    """
    if bounds is None:
        return FEWEST_FOR_T
    fewest = _enough(_growth(np.zeros(1), budget.max_drop), 1 - budget.confidence)
    if fewest is None:
        raise DataError(f"budget: no number of examples can show max_drop={budget.max_drop}; try 0.01 for 1 %")
    return fewest


def _samples(samples: ArrayLike) -> Float[Array, " n"]:
    x = np.asarray(samples, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise DataError(f"scores: found shape {x.shape}, where one number per example is needed")
    if not np.isfinite(x).all():
        raise DataError(f"scores: {(~np.isfinite(x)).sum()} of {x.size} are not finite; the model's outputs overflow")
    return x


def _drops(original: ArrayLike, compressed: ArrayLike, bounds: Bounds, relative: bool) -> Float[Array, " n"]:
    """Paired differences; those of bounded scores as a fraction of the range, in [-1, 1]."""
    before, after = _samples(original), _samples(compressed)
    if before.size != after.size:
        raise DataError(f"scores: {before.size} original and {after.size} compressed ones do not pair up")
    if bounds is None:
        return before - after
    low, high = bounds
    if relative or not low < high:
        raise DataError(f"bounds: {bounds} must rise, and be None for relative drops (of logarithms)")
    if min(before.min(), after.min()) < low or max(before.max(), after.max()) > high:
        raise DataError(f"scores: some are outside the bounds {bounds}; give the bounds that hold for any example")
    return (before - after) / (high - low)


def _growth(d: Float[Array, " n"], drop: float) -> Float[Array, "c n"]:
    """Each bet's gain on each example in log wealth, when betting against a mean drop of `drop` or more."""
    return np.log1p(BETS[:, None] * (drop - d) / (1 - drop))


def _ruled_out(d: Float[Array, " n"], alpha: float) -> float:
    """The smallest mean drop against which the wealth has reached 1/α at some time; it grows with the drop."""
    from scipy.special import logsumexp  # here, since it is slow to import

    low, high = -1.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        wealth = logsumexp(np.cumsum(_growth(d, middle), axis=1), axis=0) - math.log(BETS.size)
        low, high = (low, middle) if wealth.max() >= -math.log(alpha) else (middle, high)
    return high


def _enough(growth: Float[Array, "c n"], alpha: float) -> int | None:
    """How many examples bring the wealth to 1/α, if it goes on growing as on these."""
    from scipy.special import logsumexp  # here, since it is slow to import

    rate, target = growth.mean(axis=1), math.log(BETS.size / alpha)
    if rate.max() * OUT_OF_REACH < target:
        return None
    alone = math.ceil(target / rate.max())  # the best bet needs no help from the others
    return 1 + bisect.bisect_left(range(1, alone), target, key=lambda n: float(logsumexp(n * rate)))


def _more(d: Float[Array, " n"], budget: Budget, bounds: Bounds, relative: bool) -> int | None:
    """About how many further examples decide, if they are like these."""
    alpha = 1 - budget.confidence
    if bounds is not None:
        ways = [_enough(_growth(d, budget.max_drop), alpha), _enough(_growth(-d, -budget.max_drop), alpha)]
        return min((max(n - d.size, 1) for n in ways if n is not None), default=None)
    gap = abs((math.log1p(budget.max_drop) if relative else budget.max_drop) - float(d.mean()))
    spread = float(d.std(ddof=1)) * _student(budget.confidence, d.size) if d.size > 1 else 0.0
    if spread > gap * math.sqrt(OUT_OF_REACH):
        return None
    enough = math.ceil((spread / gap) ** 2) if spread else 0
    return max(enough, FEWEST_FOR_T, d.size + 1) - d.size


def _expm1(x: float) -> float:
    """exp(x) - 1, large but finite for a model so broken that it would overflow."""
    return math.expm1(min(x, 700.0))


def _student(probability: float, n: int) -> float:
    """The quantile of Student's t for the mean of n samples."""
    from scipy.special import stdtrit  # here, since it is slow to import

    return float(stdtrit(n - 1, probability))
