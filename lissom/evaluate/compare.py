"""Two models on the same examples: both run on each batch once, and only a few numbers per example are kept.

Shapes: n examples.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import nn

from lissom.calibrate import Batch
from lissom.estimate import Array, Certificate, Estimate, mean_estimate, paired_difference, proportion
from lissom.evaluate.agreement import divergence, same_top1
from lissom.evaluate.examples import array, evaluating
from lissom.evaluate.metric import Metric, Output, lots, metric
from lissom.types import Budget


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Paired:
    """The scores of two models, example by example; `kl` and `same_top1` where the outputs are logits."""

    metric: Metric
    original: Float[Array, " n"]
    compressed: Float[Array, " n"]
    kl: Float[Array, " n"] | None = None
    same_top1: Float[Array, " n"] | None = None

    def certify(self, budget: Budget) -> Certificate:
        """Whether the drop stays inside the budget."""
        return self.metric.certify(self.original, self.compressed, budget)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The figures of two models, with their intervals.

    `drop` is paired, on the scale of a budget (a fraction); `flips` is the fraction of examples that became right or
    wrong; `kl` is KL(original ‖ compressed) in nats per prediction; `same_top1` the fraction of predictions that agree.
    """

    metric: str
    original: Estimate
    compressed: Estimate
    drop: Estimate
    flips: Estimate | None = None
    kl: Estimate | None = None
    same_top1: Estimate | None = None

    @classmethod
    def of(cls, scores: Paired) -> "Comparison":
        """The figures of scores."""
        kind, before, after = scores.metric, scores.original, scores.compressed
        return cls(
            metric=kind.name,
            original=kind.summary(before),
            compressed=kind.summary(after),
            drop=paired_difference(before, after, bounds=kind.bounds, logarithms=kind.logarithms),
            flips=None if kind.bounds is None else proportion(int((before != after).sum()), before.size),
            kl=None if scores.kl is None else mean_estimate(scores.kl, unit="nats"),
            same_top1=None if scores.same_top1 is None else mean_estimate(scores.same_top1).through(fraction),
        )


def fraction(share: float) -> float:
    """A mean of fractions, and the ends of its interval, kept from 0 to 1."""
    return min(max(share, 0.0), 1.0)


def compare(
    original: nn.Module, compressed: nn.Module, data: Any, by: str | Metric | Output = "accuracy"
) -> Comparison:
    """The figures of two models on data.

    Raises:
        DataError: there are no examples, or they do not fit the metric.
    """
    return Comparison.of(paired(original, compressed, data, by))


def paired(original: nn.Module, compressed: nn.Module, data: Any, by: str | Metric | Output = "accuracy") -> Paired:
    """The scores of two models on data.

    Raises:
        DataError: there are no examples, or they do not fit the metric.
    """
    kind = metric(by)
    with evaluating(original, compressed):
        parts = [both(original, compressed, batch, kind) for batch in lots(data, [kind], original)]
    found = {name: [part[name] for part in parts] for name in parts[0]}
    scores = {name: kind.together(found.pop(name)) for name in ("original", "compressed")}
    return Paired(metric=kind, **scores, **{name: np.concatenate(lists) for name, lists in found.items()})


def both(original: nn.Module, compressed: nn.Module, batch: Batch, kind: Metric) -> dict[str, Array]:
    """What two models are graded on a batch."""
    before, after = kind.output(original, batch), kind.output(compressed, batch)
    graded = kind.pair(before, after, batch)
    scores = {"original": graded[0], "compressed": graded[1]}
    if kind.logits:
        scores["kl"] = array(divergence(before, after))
        scores["same_top1"] = array(same_top1(before, after))
    return scores
