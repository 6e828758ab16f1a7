"""Scores without bounds, tested by t at any time: the sound counterpart of betting for perplexity and for KL.

No test bounds a mean from above after any number of examples if one of them may be arbitrarily bad (Bahadur and Savage,
1956), and bounds that always hold, such as those of log probabilities mixed with a little of the uniform distribution,
are so wide (some ten nats beside budgets of a hundredth) that thousands of windows would be needed to pass the original
itself. What is assumed instead: units are independent, and their means are near enough to normal.

With x_k = ε m_k - d_k and T_n Student's statistic of the first n of them, the e-process against "the drop is ε or
more" is the likelihood ratio of T_n for an effect x̄ / s from a half-normal distribution of scale 1/c against none, in
closed form, with S = Σ x, V = Σ x², q = S² / V and F_n the distribution function of Student's t with n degrees of
freedom:

    M_n = 2 · √(c² / (n + c²)) · (1 - q / (n + c²))^(-n/2) · F_n( √(n q / (n + c² - q)) )

Normal x: it reaches 1/α at any time with probability α at most, whatever their variance, from the second unit on (Lai,
Annals of Statistics 1976; Wang and Ramdas, arXiv:2310.03722; Pérez-Ortiz et al., arXiv:2208.07610; that M grows with T,
which a shift of all x moves one way, carries it from no effect to all drops above ε). Other x: in the limit of late
looks, where M is the asymptotic confidence sequence of Waudby-Smith et al., arXiv:2103.06476. So the first look is at
`FEWEST` units; and because what compression costs may be skewed (a few windows lose much, and early looks have not
seen them), each end gives way, in its own direction only, by twice what the skewness g of the units so far makes T miss
(Johnson, JASA 1978; twice, as few units show too little of it):

    2 · |g| (1 + 2 T²) / (6 √n)

By simulation at 95 % with a look after each of 300 units (docs/certificate.md), a drop that is the budget is then
passed by 3 % of runs where it is exponential, and by 7 % where its logarithm is normal with a deviation of 1: tails as
heavy as that are beyond what is promised.

Means of clusters of unequal sizes, and relative drops, are ratios r = Σd / Σm: their spread is that of the residuals
d_k - r m_k (Miller, arXiv:2411.00640, section 2.2), which holds in the same limit.

Shapes: n units.
"""

import bisect
import math
from typing import Any

import numpy as np
from jaxtyping import Float

from lissom.estimate.interval import Array

FEWEST = 20
C2 = 8.0  # sharpest at a few dozen units to a few hundred
OUT_OF_REACH = 10**9
ROUNDS = 12
HUGE = 1e30  # instead of infinity, which times no spread is no number
TINY = 1e-150  # instead of no spread
Counts = np.ndarray[Any, np.dtype[np.int64]]


class Limits:
    """Both ends of the drop, each valid at any time at level α, from sums that are kept."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.n = 0
        self.low, self.high = -math.inf, math.inf
        self._origin = 0.0  # about the first unit's drop, so that sums of cubes keep their digits
        self._sums = np.zeros(9)

    def add(self, d: Float[Array, " n"], m: Float[Array, " n"]) -> None:
        """More units: what was lost in each, and what the loss is measured against."""
        if self.n == 0 and m[0] > 0:
            self._origin = float(d[0] / m[0])
        parts = powers(d - self._origin * m, m)
        parts[:, 0] += self._sums
        sums = np.cumsum(parts, axis=1)
        n = np.arange(self.n + 1, self.n + d.size + 1)
        self.n, self._sums = int(n[-1]), sums[:, -1]
        ready = (n >= FEWEST) & (sums[0] > 0)
        if ready.any():
            low, high = self._ends(sums[:, ready], n[ready])
            self.low, self.high = max(self.low, float(low.max())), min(self.high, float(high.min()))

    def more(self, drop: float) -> int | None:
        """About how many further units show on which side of `drop` the truth is, if they are like these."""
        first = max(FEWEST, self.n + 1)
        if self.n < 2 or self._sums[0] <= 0:
            return first - self.n

        def decides(n: int) -> bool:
            low, high = self._ends((self._sums * n / self.n)[:, None], np.array([n]))
            return bool((low > drop) | (high <= drop))

        if not decides(OUT_OF_REACH):
            return None
        return first + bisect.bisect_left(range(first, OUT_OF_REACH), True, key=decides) - self.n

    def _ends(self, sums: Float[Array, "9 n"], n: Counts) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """Both ends of the drop after each number of units."""
        low, high = ends(sums, n, self.alpha)
        return self._origin + low, self._origin + high


def powers(e: Float[Array, "*runs n"], m: Float[Array, "*runs n"]) -> Float[Array, "9 *runs n"]:
    """What `ends` needs the sums of."""
    return np.stack([m, e, m * m, m * e, e * e, m**3, m * m * e, m * e * e, e**3])


def ends(
    sums: Float[Array, "9 *runs n"], n: Counts, alpha: float
) -> tuple[Float[Array, "*runs n"], Float[Array, "*runs n"]]:
    """Both ends of Σe / Σm after each number of units, from the sums of their `powers`, in each of some runs."""
    m, e, mm, me, ee, mmm, mme, mee, eee = sums
    r = e / m
    squares = np.maximum(ee - 2 * r * me + r * r * mm, 0.0)
    cubes = eee - 3 * r * mee + 3 * r * r * mme - r**3 * mmm
    skewness = np.sqrt(n) * cubes / np.maximum(squares, TINY) ** 1.5
    t = threshold(n, alpha)
    amiss = 2 * np.abs(skewness) * (1 + 2 * t * t) / (6 * np.sqrt(n))
    error = np.sqrt(squares / np.maximum(n - 1, 1) * n) / m
    return r - error * (t + amiss * (skewness < 0)), r + error * (t + amiss * (skewness > 0))


def threshold(n: Counts, alpha: float) -> Float[Array, " n"]:
    """The T_n from which on M_n is at least 1/α; `HUGE` where none is."""
    from scipy.special import stdtr  # here, since it is slow to import

    sure = np.ones(n.size)  # F_n, which hardly depends on q
    wanted = q = np.zeros(n.size)
    for _ in range(ROUNDS):
        wanted = (n + C2) * (1 - (2 * alpha * sure * np.sqrt(C2 / (n + C2))) ** (2 / n))
        q = np.clip(wanted, 0, n)
        sure = stdtr(n, np.sqrt(n * q / (n + C2 - q)))
    return np.where(wanted < n, np.sqrt(q * (n - 1) / np.maximum(n - q, TINY)), HUGE)
