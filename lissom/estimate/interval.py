"""A measurement and the interval that holds the true value."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lissom.errors import DataError

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]  # no NDArray: from numpy 2.5 on it is no class


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


def mean_estimate(samples: ArrayLike, *, unit: str = "", confidence: float = 0.95) -> Estimate:
    """The mean of independent samples, with Student's interval; a single sample says nothing about its spread."""
    x = finite(samples)
    mean, half = float(x.mean()), math.inf
    if x.size > 1:
        half = student((1 + confidence) / 2, x.size) * float(x.std(ddof=1)) / math.sqrt(x.size)
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
    return mean_estimate(log_likelihood, confidence=confidence).through(lambda mean: 1 + expm1(-mean))


def median_estimate(samples: ArrayLike, *, unit: str = "", confidence: float = 0.95) -> Estimate:
    """The median, with the interval between two order statistics, which assumes no distribution.

    The k-th smallest and k-th largest of n samples hold the median between them with probability 1 - 2 P(B < k),
    B binomial(n, 1/2). Below six samples even the whole range holds less than 95 %: the estimate then says how much.
    """
    x = np.sort(finite(samples))
    below = np.cumsum([math.comb(x.size, k) / 2**x.size for k in range(x.size)])
    k = max(1, int(np.searchsorted(below, (1 - confidence) / 2, side="right")))
    confidence = min(confidence, 1 - 2 * float(below[0]))
    low, high = float(x[k - 1]), float(x[-k])
    return Estimate(value=float(np.median(x)), low=low, high=high, n=x.size, unit=unit, confidence=confidence)


def finite(samples: ArrayLike) -> Float[Array, " n"]:
    """One number for each example.

    Raises:
        DataError: there are none, or some are not finite.
    """
    x = np.asarray(samples, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise DataError(f"scores: found shape {x.shape}, where one number per example is needed")
    if not np.isfinite(x).all():
        raise DataError(f"scores: {(~np.isfinite(x)).sum()} of {x.size} are not finite; the model's outputs overflow")
    return x


def expm1(x: float) -> float:
    """exp(x) - 1, large but finite for a model so broken that it would overflow."""
    return math.expm1(min(x, 700.0))


def student(probability: float, n: int) -> float:
    """The quantile of Student's t for the mean of n samples."""
    from scipy.special import stdtrit  # here, since it is slow to import

    return float(stdtrit(n - 1, probability))
