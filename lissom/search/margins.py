"""Margins: how far inside the budgets candidates are, by what the data for choosing tells of all of them.

What was measured of a candidate that is close to the original is mostly chance. How far it is from the original
(`yardstick.py`) is known better, and from one candidate to the next the drop grows as the distance d does:

    drop ~ N(a d, (c a d)²)        measured ~ N(drop, s²)
    E[drop | measured] = a d + (measured - a d) (c a d)² / ((c a d)² + s²)

so each drop is drawn to the line, the more the less certain it is, and none that is certain. The line is that of all
candidates, each counting by 1 / ((c a d)² + s²): empirical Bayes, as in Fay, Herriot, JASA 1979, who draw estimates of
known errors to a regression. Those that have learned drop less at the same distance, and have a line of their own. The
widths of intervals are drawn to a law too, of a power of the distance: a few answers that part from the original's tell
no width by themselves. This orders the certificates, and proves nothing: those have data of their own. Of some only a
part of the examples was looked at; margins are told in the widths that all of the examples would leave.

Shapes: c candidates.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from lissom.estimate import Array, Estimate
from lissom.evaluate import Budgets, Comparison, Metric
from lissom.types import Budget

WIDTH = 1.96  # standard errors in half an interval
CLEAR = 3.0  # half widths of its interval that a drop is inside or outside a budget by: as clear as need be
SPREAD = 0.25  # c; far choices for ResNet-20 had 0.15 with chance and all (docs/log-2026-11-27.md)
FEWEST = 3  # candidates that tell a law
ROUNDS = 20  # of finding the line, whose weights hang on it


def margins(
    budgets: Budgets, figures: Sequence[Mapping[str, Comparison]], distances: Sequence[float], learned: Sequence[bool]
) -> list[float]:
    """How far inside all budgets each candidate is expected to be, in half widths of its drop's interval."""
    far, apart = np.array(distances, dtype=float), np.array(learned, dtype=bool)
    rooms = [room(budget, kind, [own[kind.name] for own in figures], far, apart) for kind, budget in budgets.items()]
    return [min(own) for own in zip(*rooms, strict=True)]


def room(
    budget: Budget, kind: Metric, found: Sequence[Comparison], far: Float[Array, " c"], apart: Bool[Array, " c"]
) -> list[float]:
    """The same by one metric; those that are set apart have a line of their own."""
    widths = np.array([half(one.drop) for one in found])
    drops = np.array([one.drop.value for one in found])
    roots = np.sqrt([one.drop.n for one in found])
    wide = widths * roots  # were it one example
    for group in (apart, np.logical_not(apart)):
        wide[group] = by_law(wide[group], far[group])
        drops[group] = expected(drops[group], wide[group] / roots[group] / WIDTH, far[group])
    narrow = wide / roots.max(initial=1)
    return [widths_inside(budget, kind, *one) for one in zip(found, drops, narrow, strict=True)]


def by_law(widths: Float[Array, " c"], far: Float[Array, " c"]) -> Float[Array, " c"]:
    """The widths to expect of candidates so far from the original: measured ones where few are of a length.

    The power is from 0, as of a chance that all share, to 1; answers that part go by about the root of a divergence.
    """
    told = (widths > 0) & (far > 0)
    if told.sum() < FEWEST or np.ptp(np.log(far[told])) == 0:
        return widths
    logs = np.log(far[told])
    power = float(np.clip(np.polyfit(logs, np.log(widths[told]), 1)[0], 0, 1))
    level = np.log(widths[told]).mean() - power * logs.mean()
    law: Float[Array, " c"] = np.exp(level + power * np.log(np.where(far > 0, far, 1.0)))
    return np.where(far > 0, law, widths)


def widths_inside(budget: Budget, kind: Metric, found: Comparison, drop: float, width: float) -> float:
    """How far a drop is inside a budget, in half widths of its interval; below 0 outside."""
    space = limit(budget, kind, found.original.value) - drop
    return float(space / width) if width > 0 else math.copysign(math.inf, space)


def clear(budgets: Budgets, figures: Mapping[str, Comparison]) -> bool:
    """Whether figures tell without more examples that all budgets are held, or that one is not."""
    found = [(budget, kind, figures[kind.name]) for kind, budget in budgets.items()]
    return abs(min(widths_inside(*one, one[2].drop.value, half(one[2].drop)) for one in found)) > CLEAR


def half(drop: Estimate) -> float:
    """Half the width of its interval."""
    return (drop.high - drop.low) / 2


def expected(measured: Float[Array, " c"], errors: Float[Array, " c"], far: Float[Array, " c"]) -> Float[Array, " c"]:
    """The drops to expect of candidates so far from the original, whose measured drops have such standard errors."""
    slope = line(measured, errors, far)
    foreseen, spread = slope * far, np.square(SPREAD * slope * far)
    chance = np.square(errors)
    trust = np.divide(spread, spread + chance, out=np.ones_like(spread), where=chance > 0)
    drawn: Float[Array, " c"] = foreseen + trust * (measured - foreseen)
    return drawn


def line(measured: Float[Array, " c"], errors: Float[Array, " c"], far: Float[Array, " c"]) -> float:
    """The drop for each unit of distance, not below 0."""
    slope = 0.0
    for _ in range(ROUNDS):
        weights = 1 / np.maximum(np.square(SPREAD * slope * far) + np.square(errors), np.finfo(float).tiny)
        power = float(weights @ np.square(far))
        slope = max(0.0, float(weights @ (far * measured)) / power) if power > 0 else 0.0
    return slope


def limit(budget: Budget, kind: Metric, before: float) -> float:
    """The drop that a budget allows: a share of the original's own score where it says so; of a logarithm always."""
    return budget.max_drop * (before if budget.relative and not kind.logarithms else 1.0)
