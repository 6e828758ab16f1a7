"""The certificate that a budget was kept: paired, one-sided, and valid whenever one looks.

Scores are per example and higher is better. The same examples are scored by the original and by the compressed model,
so that what both get right or wrong cancels: the drop is Σd / Σm, d = original - compressed, over all examples. m is 1,
or for a relative budget the original's score. Examples come in random order from what the certificate speaks of, and
those that belong together (questions about one document) are one cluster: clusters are the units of the tests.

Scores with bounds are tested by betting (betting.py), which assumes nothing more; those without by t (student.py).

Shapes: n examples, u units.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lissom.errors import DataError
from lissom.estimate import betting, student
from lissom.estimate.interval import Array, Estimate, expm1, finite, mean_estimate
from lissom.types import Budget

Bounds: TypeAlias = tuple[float, float] | None
Verdict: TypeAlias = Literal["PASS", "FAIL", "NEED MORE"]
WORST_FIRST: tuple[Verdict, ...] = ("FAIL", "NEED MORE", "PASS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Whether a drop stays inside a budget, with the confidence that was asked for.

    `drop` and `max_drop` are on the budget's scale. Each end of `drop` holds with `confidence`, both together with
    2 · confidence - 1. The verdict is PASS when the upper end is at most `max_drop`, FAIL when the lower end is above
    it. `n` counts what is independent: examples, or clusters of them. `n_more` is about how many further ones would
    decide: 0 when they did, None when no attainable number would. `metric` and `parts` are of certificates that were
    joined: those with this verdict, and all.
    """

    verdict: Verdict
    drop: Estimate
    n: int
    n_more: int | None
    confidence: float
    max_drop: float
    relative: bool = False
    method: str
    metric: str = ""
    parts: Mapping[str, "Certificate"] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line for each metric: the verdict, the drop and the budget."""
        if self.parts:
            return "\n".join(map(str, self.parts.values()))
        more = f" ({self.n_more} more examples)" if self.n_more else ""
        named = f" of {self.metric}" if self.metric else ""
        share = " of the original's" if self.relative else ""
        return (
            f"{self.verdict}{more}: drop{named} {self.drop:.2%}, "
            f"budget {self.max_drop:.2%}{share} at {self.confidence:g} confidence"
        )


class Certifier:
    """A certificate that is fed batch by batch; the state of its test is kept, so that a look costs next to nothing.

    However often one looks and whenever one stops, a model that drops more than the budget is passed with probability
    at most 1 - confidence, and one that drops less is failed as rarely. Fed in parts or at once it says the same.

    Args:
        budget: the drop that is accepted, and the confidence.
        bounds: between which every score lies; None if there are none. A drop is a fraction of their range.
        logarithms: the scores, without bounds, are logarithms, and the drop is that of what they are logarithms of,
            relative to the original: of log likelihoods per token the growth of perplexity.
        clusters: a label for each example that will come, in order; those of one label are one unit, which counts once
            its last example has come. The sizes of clusters must not depend on the scores.
        planned: how many units there will be, settled before any score was seen. Scores with bounds then pass much
            more often by the last of them, and clear ones a fifth later than without (docs/certificate.md). There may
            be fewer in the end, or more; but what was planned must stay as it was.

    Raises:
        DataError: the bounds do not rise, or do not go with a relative budget or with logarithms; nothing is planned.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        bounds: Bounds = (0.0, 1.0),
        logarithms: bool = False,
        clusters: ArrayLike | None = None,
        planned: int | None = None,
    ) -> None:
        if planned is not None and planned < 1:
            raise DataError(f"planned: {planned} units are none; give how many there will be, or leave it out")
        if bounds is not None and (logarithms or not bounds[0] < bounds[1]):
            raise DataError(f"bounds: {bounds} must rise, and be None for logarithms")
        if bounds is not None and budget.relative and bounds[0] != 0:
            raise DataError(f"bounds: {bounds} must begin at 0, for a relative budget is a share of the score")
        self.budget, self.bounds, self.logarithms = budget, bounds, logarithms
        self.relative = budget.relative and not logarithms  # a drop of logarithms is relative as it is
        self._clusters = None if clusters is None else _Clusters(clusters)
        self._limit = math.log1p(budget.max_drop) if logarithms else budget.max_drop
        self._units = np.empty((2, 0))
        plan = None if planned is None else betting.Plan(planned, 1 - budget.confidence)
        self._kept, self._broken = betting.Wealth(plan), betting.Wealth()
        self._limits, self._planned = student.Limits(1 - budget.confidence), planned

    def add(self, original: ArrayLike, compressed: ArrayLike) -> None:
        """More examples.

        Raises:
            DataError: the scores do not pair up, are not finite, or leave the bounds; there are more than labels.
        """
        before, after = self._scaled(original, compressed)
        units = np.stack([before - after, before if self.relative else np.ones(before.size)])
        if self._clusters is not None:
            units = self._clusters.add(units)
        if units.shape[1] == 0:
            return
        self._units = np.concatenate([self._units, units], axis=1)
        d, m = units
        if self.bounds is None:
            self._limits.add(d, m)
        else:
            self._kept.add(betting.gains(d, m, self._limit))
            self._broken.add(betting.losses(d, m, self._limit, self.relative))

    @property
    def verdict(self) -> Verdict:
        """PASS, FAIL, or NEED MORE examples; FAIL where both were shown, as can be of examples in no random order."""
        enough = -math.log(1 - self.budget.confidence)
        if self.bounds is None:
            kept, broken = self._limits.high <= self._limit, self._limits.low > self._limit
        else:
            kept, broken = self._kept.most >= enough, self._broken.most >= enough
        return "FAIL" if broken else "PASS" if kept else "NEED MORE"

    @property
    def drop(self) -> Estimate:
        """The drop, each end with the budget's confidence.

        Raises:
            DataError: no example, or no whole cluster, has come.
        """
        d, m = self._units
        if d.size == 0:
            raise DataError("scores: found none, where one number per example is needed, and all of one cluster")
        if self.bounds is None:
            low, high = self._limits.low, self._limits.high
        else:
            plan = self._kept.plan
            planned = None if plan is None else (self._limit, plan.path)
            low, high = betting.limits(d, m, 1 - self.budget.confidence, self.relative, planned)
            if self.verdict == "PASS":  # to the last bit
                high = min(high, self._limit)
        value = float(d.sum() / m.sum()) if m.sum() > 0 else 0.0
        found = Estimate(value=value, low=low, high=high, n=d.size, confidence=2 * self.budget.confidence - 1)
        return found.through(expm1) if self.logarithms else found

    @property
    def certificate(self) -> Certificate:
        """What the examples so far show.

        Raises:
            DataError: no example, or no whole cluster, has come.
        """
        drop, verdict = self.drop, self.verdict
        return Certificate(
            verdict=verdict,
            drop=drop,
            n=drop.n,
            n_more=self._more() if verdict == "NEED MORE" else 0,
            confidence=self.budget.confidence,
            max_drop=self.budget.max_drop,
            relative=self.relative,
            method=self._method,
        )

    @property
    def _method(self) -> str:
        """By what it was tested."""
        if self.bounds is None:
            return "t e-process, paired"
        plan = "" if self._planned is None else f", {self._planned:,} planned"
        return f"betting e-process, paired (arXiv:2010.09686){plan}"

    def _scaled(self, original: ArrayLike, compressed: ArrayLike) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """The scores, as fractions of the range where they have one."""
        before, after = finite(original), finite(compressed)
        if before.size != after.size:
            raise DataError(f"scores: {before.size} original and {after.size} compressed ones do not pair up")
        if self.bounds is None:
            return before, after
        low, high = self.bounds
        if min(before.min(), after.min()) < low or max(before.max(), after.max()) > high:
            raise DataError(
                f"scores: some are outside the bounds {self.bounds}; give the bounds that hold for any example"
            )
        return before / (high - low), after / (high - low)

    def _more(self) -> int | None:
        """About how many further units decide, if they are like these."""
        if self.bounds is None:
            return self._limits.more(self._limit)
        d, m = self._units
        alpha = 1 - self.budget.confidence
        kept = alpha if self._planned is None else alpha / 2  # as if nothing were left of the half that has its plan
        numbers = [
            betting.enough(betting.gains(d, m, self._limit), kept),
            betting.enough(betting.losses(d, m, self._limit, self.relative), alpha),
        ]
        return min((max(n - d.size, 1) for n in numbers if n is not None), default=None)


class _Clusters:
    """Examples become units: clusters, each when its last example has come, as fractions of the largest one's size."""

    def __init__(self, labels: ArrayLike) -> None:
        given = np.asarray(labels)
        if given.ndim != 1 or given.size == 0:
            raise DataError(f"clusters: found shape {given.shape}, where one label per example is needed")
        _, self._which, sizes = np.unique(given, return_inverse=True, return_counts=True)
        self._largest = int(sizes.max())
        self._last = np.zeros(sizes.size, dtype=np.int64)
        np.maximum.at(self._last, self._which, np.arange(given.size))
        self._sums = np.zeros((2, sizes.size))
        self._seen = 0

    def add(self, parts: Float[Array, "2 n"]) -> Float[Array, "2 u"]:
        """The units that are whole with these examples."""
        places = np.arange(self._seen, self._seen + parts.shape[1])
        if places[-1] >= self._which.size:
            raise DataError(f"clusters: {self._which.size} labels for {places[-1] + 1} examples; give one for each")
        self._seen += parts.shape[1]
        which = self._which[places]
        for total, part in zip(self._sums, parts, strict=True):
            np.add.at(total, which, part)
        whole = which[self._last[which] == places]
        return self._sums[:, whole] / self._largest


def certify(
    original: ArrayLike,
    compressed: ArrayLike,
    budget: Budget,
    *,
    bounds: Bounds = (0.0, 1.0),
    logarithms: bool = False,
    clusters: ArrayLike | None = None,
    planned: int | None = None,
) -> Certificate:
    """Whether the compressed model stays inside the budget: PASS, FAIL, or NEED MORE examples.

    The certificate of a `Certifier`, which says what the arguments are and what is guaranteed, for scores at once.

    Raises:
        DataError: the scores do not pair up, are not finite, or leave the bounds; or labels are missing.
    """
    certifier = Certifier(budget, bounds=bounds, logarithms=logarithms, clusters=clusters, planned=planned)
    certifier.add(original, compressed)
    return certifier.certificate


def joint(certificates: Mapping[str, Certificate]) -> Certificate:
    """Several metrics at once, all of which must pass: the certificate of the worst, with all of them as its parts.

    It passes if every one does, which needs no correction: a model that breaks some budget is passed only if that very
    one is passed falsely (an intersection-union test; Berger, Technometrics 1982). It fails if any does.

    Raises:
        DataError: there are none.
    """
    if not certificates:
        raise DataError("certificates: there are none to join; give at least one metric with its budget")
    named = {name: replace(one, metric=name) for name, one in certificates.items()}
    verdict = min((one.verdict for one in named.values()), key=WORST_FIRST.index)
    worst = {name: one for name, one in named.items() if one.verdict == verdict}
    missing = [one.n_more for one in worst.values()]
    more = None if None in missing else max(number for number in missing if number is not None)
    return replace(next(iter(worst.values())), n_more=more, metric=", ".join(worst), parts=named)


def paired_difference(
    original: ArrayLike,
    compressed: ArrayLike,
    *,
    bounds: Bounds = (0.0, 1.0),
    logarithms: bool = False,
    relative: bool = False,
    confidence: float = 0.95,
) -> Estimate:
    """The mean drop from the original's scores to the compressed model's, on the scale of a budget.

    The interval of scores with bounds, and of relative drops, is that of a certificate, which holds whenever one looks;
    that of others is Student's, for a number of examples fixed beforehand.

    Raises:
        DataError: the scores do not pair up, are not finite, or leave the bounds.
    """
    budget = Budget(confidence=(1 + confidence) / 2, relative=relative)
    certifier = Certifier(budget, bounds=bounds, logarithms=logarithms)
    certifier.add(original, compressed)
    if bounds is not None or certifier.relative:
        return certifier.drop
    drop = mean_estimate(np.subtract(original, compressed), confidence=confidence)
    return drop.through(expm1) if logarithms else drop


def fewest_examples(budget: Budget, *, bounds: Bounds = (0.0, 1.0)) -> int:
    """The smallest number of examples with which any model can pass: one that never differs from the original.

    With a plan a few less may do.

    Raises:
        DataError: no number is enough, because no drop at all is allowed.
    """
    if bounds is None:
        return student.FEWEST
    never = betting.gains(np.zeros(1), np.ones(1), budget.max_drop)
    fewest = betting.enough(never, 1 - budget.confidence)
    if fewest is None:
        raise DataError(f"budget: no number of examples can show max_drop={budget.max_drop}; try 0.01 for 1 %")
    return fewest
