"""Trying a candidate: what it costs beside the original, measured by turns, and whether it is worth certifying."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from lissom.estimate import median_estimate
from lissom.evaluate import Budgets, Comparison, Metric
from lissom.hardware import MEASURED
from lissom.progress import FrontierPoint, Progress, Tell
from lissom.search.choosing import HARDLY, PLAIN, Seen, broken
from lissom.search.costs import AREA
from lissom.search.joint import times
from lissom.search.latency import SECONDS, Parts, Run, by_turns
from lissom.search.recover import LEARN
from lissom.search.result import Point
from lissom.search.subject import Subject, Trial

ORIGINAL = "original"  # its name among the candidates
ROUNDS = 15  # of timing each candidate beside the original
TRIES, NOISY = 5, 1.05  # of them at most, where the original takes so many times what it took at its fastest


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the search was asked; of the metrics the tables show the first, and `by` reads outputs for distances.

    `how` says where times on the target come from.
    """

    budgets: Budgets
    by: Metric
    target: str
    weights: Mapping[str, float]
    progress: Tell
    how: str = MEASURED

    @property
    def measured(self) -> bool:
        """Whether times are measured, on a target that is here."""
        return self.how == MEASURED

    @property
    def counts_time(self) -> bool:
        """Whether anything counts but the size."""
        return set(self.weights) != {"size"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A candidate and what choosing needs to know of it; `before` is the original, measured beside it.

    `cost` is relative to the original's; `figures` are those of each metric on the data for choosing, `distance` how
    far it is from the original there (by `yardstick.py`); `broken` says which budget it breaks there, or that it is
    larger than the chip, and is empty where neither is so.
    """

    trial: Trial
    point: Point
    before: Point
    cost: float
    figures: Mapping[str, Comparison]
    distance: float
    broken: str

    @property
    def learned(self) -> bool:
        """Whether it was trained as a whole on the data."""
        return any(step.technique == LEARN.technique for step in self.trial.recipe.steps)


def timed(
    subject: Subject,
    trial: Trial,
    seen: Seen,
    terms: Terms,
    told: Mapping[str, Any] = MappingProxyType({}),
    place: tuple[int, int] | None = None,
) -> Tried:
    """A candidate beside the original, by turns; `place` says how many were timed before it, of how many."""
    done, total = place or (None, None)
    terms.progress(Progress(stage="time", text=f"{seen.name}: time", done=done, total=total))
    rounds = quietest(subject, {ORIGINAL: subject.timed(), seen.name: trial.timed()})
    (first, parts), (_, own) = ((name, in_parts(spent)) for name, spent in rounds.items())
    before = subject.point(first, subject.nbytes, **shown([unchanged(one) for one in seen.figures.values()]), **parts)
    kl = seen.distance if terms.by.logits else None
    point = subject.point(seen.name, trial.nbytes, kl=kl, **shown(list(seen.figures.values())), **own, **told)
    own = {"size": point.nbytes, **times(values(point))}
    return Tried(
        trial=trial,
        point=point,
        before=before,
        cost=cost(own, before, terms.weights),
        figures=seen.figures,
        distance=seen.distance.value,
        broken=broken(terms.budgets, seen.figures) or too_large(point),
    )


def quietest(subject: Subject, runs: Mapping[str, Run]) -> dict[str, list[Parts]]:
    """What each run takes by turns; again while the original is slower than it was, since something slows both down.

    It does so in unequal measure, so that the times beside it are off too. Of all tries the one counts in which the
    original was fastest.
    """
    tries: list[tuple[float, dict[str, list[Parts]]]] = []
    begun = time.monotonic()
    for _ in range(TRIES):
        found = by_turns(runs, ROUNDS)
        spent = statistics.median(times(parts)["latency"] for parts in found[ORIGINAL])
        tries.append((spent, found))
        subject.fastest = min(subject.fastest, spent)
        if spent <= NOISY * subject.fastest or time.monotonic() - begun > SECONDS:
            break
    return min(tries, key=lambda one: one[0])[1]


def too_large(point: Point) -> str:
    """Why a circuit cannot be made, where it is larger than the chip."""
    area = point.parts.get(AREA)
    return f"takes {area.value:.0%} of the chip" if area is not None and area.value > 1 else ""


def shown(figures: Sequence[Comparison]) -> dict[str, Any]:
    """What a point has of several metrics."""
    first, *others = figures
    return {"quality": first.compressed, "drop": first.drop, "others": {one.metric: one for one in others}}


def unchanged(found: Comparison) -> Comparison:
    """The original compared with itself."""
    nothing = replace(found.drop, value=0.0, low=0.0, high=0.0)
    return Comparison(metric=found.metric, original=found.original, compressed=found.original, drop=nothing)


def in_parts(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The latency, and the parts of it where there are several, with what else a circuit takes."""
    parts = {
        part: median_estimate([spent[part] for spent in rounds], unit="" if part == AREA else "ms")
        for part in rounds[0]
    }
    latency = median_estimate([times(spent)["latency"] for spent in rounds], unit="ms")
    return {"latency": latency, "parts": parts if len(parts) > 1 else {}}


def values(point: Point) -> dict[str, float]:
    """The parts of a latency, in milliseconds."""
    return {part: found.value for part, found in point.parts.items()} or {"latency": point.latency.value}


def cost(own: Mapping[str, float], before: Point, weights: Mapping[str, float]) -> float:
    """The product of size and times, as ratios to those of the original, each to the power of its weight."""
    original = {"size": before.nbytes, **times(values(before))}
    return float(math.prod((own[part] / original[part]) ** weight for part, weight in weights.items()))


def worth_certifying(tried: Sequence[Tried], margins: Sequence[float], counts_time: bool) -> list[Tried]:
    """Those within all budgets on the data for choosing that cost less than the original, the surest first.

    `margins` tell how sure each is (`margins.py`). Each must pass before the next is looked at, so that one that costs
    no less than a surer one could only end the sequence; where time counts, those of one form, which all are compared
    with, stay if they may turn out to be as cheap.
    """
    sure = {one.point.name: margin for one, margin in zip(tried, margins, strict=True)}
    good = [one for one in tried if not one.broken and one.cost < 1]
    queue = list[Tried]()
    for one in sorted(good, key=lambda one: (-sure[one.point.name], one.distance)):
        least = min((other.cost for other in queue), default=math.inf)
        if one.cost < least * (HARDLY if counts_time and one.point.name in PLAIN else 1):
            queue.append(one)
    return queue


def standing(tried: Sequence[Tried], verdicts: Mapping[str, str]) -> tuple[FrontierPoint, ...]:
    """Candidates with their verdicts so far, the cheapest first."""
    found = [(one.point, one.cost) for one in sorted(tried, key=lambda one: one.cost)]
    return tuple(
        FrontierPoint(
            name=point.name,
            nbytes=point.nbytes,
            drop=point.drop.value,
            cost=cost,
            verdict=verdicts.get(point.name, ""),
        )
        for point, cost in found
    )


def noted(one: Tried, queue: Sequence[Tried], verdicts: Mapping[str, str], leading: Mapping[str, str]) -> Point:
    """The point with its verdict and whether it is `leading` in something, or why it was not certified."""
    point = one.point
    if point.name in verdicts:
        best = [f"the {what}" for what, name in leading.items() if name == point.name]
        note = f"{' and '.join(best)} of those that are certified" if best else ""
        return replace(point, verdict=verdicts[point.name], note=note)
    if one.broken:
        return replace(point, note=one.broken)
    if one.cost >= 1:
        return replace(point, note=f"costs {one.cost:.2f} times what the original does")
    if point.name not in {other.point.name for other in queue}:
        surer = next(other for other in queue if other.cost <= one.cost)
        return replace(point, note=f"{surer.point.name} is surer to pass and costs no more")
    return replace(point, note="less certain to pass than one that did not")
