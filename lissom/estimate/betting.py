"""Scores with bounds, tested by betting: valid after any number of units, whatever their distribution.

Waudby-Smith and Ramdas, JRSSB 2024, arXiv:2010.09686, section 4 and the diversified bets of its appendix B. Against
the hypothesis "the drop is ε or more" a gambler puts the fraction c of all that can be lost on each unit in turn. The
wealth, averaged over a fixed table of c,

    W_t = mean over c of  Π_{k≤t} (1 + c · x_k / w)        x_k = ε m_k - d_k ≥ -w

stays below 1/α for ever with probability 1 - α if the hypothesis holds, for then no x has a mean above 0. So ε is an
upper bound for the drop as soon as W_t reached 1/α once, at any time: looking early and adding examples later costs
nothing. One fixed table does better than a bet learnt on the way, which needs many examples to recover from a bold
start. With -x it bets against "the drop is ε or less".

Where it was settled beforehand how many units N there will be, half of the wealth is bet by that: it begins as 1 like
the other half V, and goes for what both must come to, M = 2/α, and a fifth more. When it is W and r units are to come,

    c = φ(z) / (Φ(z) s √r)       Φ(z) = W / (1.2 M - V)       s² = mean of (x / w)² so far

is the surest way to be there in time where gains are normal (Browne, Adv. Appl. Prob. 1999, "Reaching goals by a
deadline"); bets that look at what is missing and at what is left have the best width for bounded ones too (STaR-Bets,
arXiv:2505.22422). By the last unit this finds most of what a test of N at once would, of which one fixed table is far
short; and what is clear is shown early by both halves. Nothing of what is promised hangs on N, s or normal gains: a bet
that does not know what it is on is fair, and after N units the half is kept as it is.

A unit is one example or a cluster of them; d is what was lost in it, in [-1, 1], and m, in [0, 1], what that is
measured against: 1 or the original's score, of a cluster the sum over its examples, both as fractions of the size of
the largest cluster, which must be known beforehand.

Shapes: n units, c bets.
"""

import bisect
import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from lissom.estimate.interval import Array

# Half of the bets are bolder than 0.87: models that hardly differ are passed after few examples. The rest thins out
# towards 0.01, for models that differ often, in both directions.
BETS = (1 - ((np.arange(16) + 0.5) / 16) ** 4) ** 2
OUT_OF_REACH = 10**9
AIM = 1.2  # times what is needed, for what is aimed at is hardly ever met before the last unit
BOLDEST = 0.9  # of all that can be lost, where a bet is not from the table
BEFORE = (0.05, 10)  # what is taken for the mean of (x / w)² at first, and the units that this counts as
NORMAL = NormalDist()


class Plan:
    """Half of a gambler's wealth, bet so that with the other half it is enough after so many units.

    `path` is what it was after each, from the first on.
    """

    def __init__(self, units: int, alpha: float) -> None:
        self.path = np.empty(0)
        self._wealth, self._enough, self._left = 1.0, AIM * 2 / alpha, units
        self._power, self._seen = BEFORE[0] * BEFORE[1], float(BEFORE[1])

    def add(self, gains: Float[Array, " n"], other: Float[Array, " n"]) -> Float[Array, " n"]:
        """What it is after each of more units; `other` is the other half before each."""
        path = []
        for gain, beside in zip(gains.tolist(), other.tolist(), strict=True):
            self._wealth *= 1 + self._bet(self._enough - beside) * gain
            self._left -= 1
            self._power, self._seen = self._power + gain * gain, self._seen + 1
            path.append(self._wealth)
        self.path = np.append(self.path, path)
        return np.asarray(path)

    def _bet(self, missing: float) -> float:
        """The fraction to put on the next unit."""
        if self._left <= 0 or self._wealth >= missing:
            return 0.0
        chance = max(self._wealth / missing, 1e-12)
        z = NORMAL.inv_cdf(chance)
        return min(BOLDEST, NORMAL.pdf(z) / (chance * math.sqrt(self._power / self._seen * self._left)))


class Wealth:
    """The wealth of a gambler, which is kept from unit to unit; `most` is the largest so far, as a logarithm."""

    def __init__(self, plan: Plan | None = None) -> None:
        self.most, self.plan = 0.0, plan
        self._bets = np.zeros(BETS.size)

    def add(self, gains: Float[Array, " n"]) -> None:
        """Bet on more units; `gains` is x / w of each."""
        steps = growth(gains)
        steps[:, 0] += self._bets
        path = np.cumsum(steps, axis=1)
        table = _together(np.column_stack([self._bets, path]))
        self._bets = path[:, -1]
        if self.plan is not None:
            table[1:] = halves(table[1:], self.plan.add(gains, np.exp(np.minimum(table[:-1], 99))))
        self.most = max(self.most, float(table[1:].max()))


def halves(table: Float[Array, " n"], planned: Float[Array, " n"]) -> Float[Array, " n"]:
    """The logarithm of the wealth, of that of one half and of the other half itself."""
    both: Float[Array, " n"] = np.logaddexp(table, np.log(np.maximum(planned, np.finfo(float).tiny))) - math.log(2)
    return both


def gains(d: Float[Array, "*n"], m: Float[Array, "*n"], drop: float) -> Float[Array, "*n"]:
    """What betting against a drop of `drop` or more brings, of what can be lost."""
    return (drop * m - d) / (1 - drop)


def losses(d: Float[Array, "*n"], m: Float[Array, "*n"], drop: float, relative: bool) -> Float[Array, "*n"]:
    """What betting against a drop of `drop` or less brings, of what can be lost."""
    return (d - drop * m) / (1.0 if relative else 1 + drop)


def limits(
    d: Float[Array, " n"],
    m: Float[Array, " n"],
    alpha: float,
    relative: bool,
    planned: tuple[float, Array] | None = None,
) -> tuple[float, float]:
    """The largest drop that was ruled out from below and the smallest from above; wealth is monotone in the drop.

    `planned` is the drop that a plan bet against, and its `path`. It bet against all larger drops by that, but not
    against smaller ones.
    """

    def drop(x: float) -> float:
        return 2 * x / (1 + x) if relative else x  # from -1 to 1; the score may grow by any factor and lose all

    def ruled_out(gains: Float[Array, " n"], half: Float[Array, " n"] | None = None) -> bool:
        logs = _together(np.cumsum(growth(gains), axis=1))
        return float((logs if half is None else halves(logs, half)).max()) >= -math.log(alpha)

    def from_above(drop: float) -> bool:
        if planned is None:
            return ruled_out(gains(d, m, drop))
        against, path = planned
        return ruled_out(gains(d, m, drop), path if drop >= against else np.minimum(path, 1))

    high = _boundary(lambda x: from_above(drop(x)))
    low = -_boundary(lambda x: ruled_out(losses(d, m, drop(-x), relative)))
    return drop(low) if low > -1 else -math.inf if relative else -1.0, drop(high)


def enough(gains: Float[Array, " n"], alpha: float) -> int | None:
    """How many units bring the wealth to 1/α, if it goes on growing as on these."""
    rate, target = growth(gains).mean(axis=1, keepdims=True), math.log(BETS.size / alpha)
    if rate.max() * OUT_OF_REACH < target:
        return None
    alone = math.ceil(target / rate.max())  # the best bet needs no help from the others
    return 1 + bisect.bisect_left(range(1, alone), -math.log(alpha), key=lambda n: float(_together(n * rate)[0]))


def growth(gains: Float[Array, " n"]) -> Float[Array, "c n"]:
    """Each bet's gain on each unit, as a logarithm."""
    return np.log1p(BETS[:, None] * gains)


def _together(logs: Float[Array, "c n"]) -> Float[Array, " n"]:
    """The logarithm of the wealth of all bets together.

    As scipy's `logsumexp` computes it, to the last bit, and at least twice as fast: it is asked thousands of times of
    few numbers. The largest are set apart, which keeps what the others add to them.
    """
    top = logs.max(axis=0)
    largest = logs == top
    many = largest.sum(axis=0)
    rest = np.exp(np.where(largest, -np.inf, logs) - top).sum(axis=0)
    return np.asarray(np.log1p(rest / many) + np.log(many) + top - math.log(BETS.size))


def _boundary(holds: Callable[[float], bool]) -> float:
    """The smallest x from -1 to 1 that a monotone statement holds for; 1 where it holds for none."""
    low, high = -1.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
