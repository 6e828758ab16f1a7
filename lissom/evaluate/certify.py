"""Two models on examples until the certificate is clear, and not longer.

Shapes: n examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor, nn

from lissom.calibrate import Batch
from lissom.errors import DataError
from lissom.estimate import Array, Certificate, Certifier, joint
from lissom.evaluate.examples import array, evaluating, pieces
from lissom.evaluate.metric import Metric, Output, metric
from lissom.types import Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A metric, its certificate so far, and what cannot be fed to it before all examples are there."""

    metric: Metric
    certifier: Certifier
    held: list[tuple[Array, Array]] = field(default_factory=list)

    def add(self, original: Tensor, compressed: Tensor, batch: Batch) -> None:
        """More examples, by what two models say of them."""
        graded = self.metric.pair(original, compressed, batch)
        if self.metric.whole is None:
            self.certifier.add(*graded)
        else:
            self.held.append(graded)

    def finish(self) -> None:
        """Feed what was held back."""
        if self.held:
            self.certifier.add(*(self.metric.together(list(parts)) for parts in zip(*self.held, strict=True)))


def certify_models(
    original: nn.Module,
    compressed: nn.Module,
    data: Any,
    budgets: Mapping[str | Metric | Output, Budget],
    *,
    clusters: ArrayLike | None = None,
) -> Certificate:
    """Whether a compressed model keeps a budget in each of several metrics, all of which must pass.

    Both models run on each batch once for all metrics that read the same output, until each metric has passed or one
    has failed, or the examples are used up.

    Args:
        original: the model that is compared with.
        compressed: the model that is judged.
        data: examples in random order, none of which had a part in making or choosing the compressed model.
        budgets: of each metric by its name, itself, or a function (model, batch) -> scores between 0 and 1.
        clusters: a label for each example; those of one label belong together, and are one unit of the test.

    Raises:
        DataError: there are no examples, or they do not fit a metric; or there is no metric, or one twice.
    """
    kinds = [(metric(by), budget) for by, budget in budgets.items()]
    if not kinds:
        raise DataError("budgets: there are none; give at least one metric with its budget, {'accuracy': Budget()}")
    names = [kind.name for kind, _ in kinds]
    if len(set(names)) < len(names):
        raise DataError(f"budgets: {', '.join(names)} name a metric twice; give one budget for each")
    trials = [Trial(metric=kind, certifier=kind.certifier(budget, clusters)) for kind, budget in kinds]
    examples = min(kind.examples for kind, _ in kinds)
    tokens = min((kind.tokens for kind, _ in kinds if kind.tokens is not None), default=None)
    with evaluating(original, compressed):
        for batch in pieces(data, examples, original, tokens):
            said: dict[Output, tuple[Tensor, Tensor]] = {}
            for trial in trials:
                output = trial.metric.output
                if output not in said:
                    said[output] = output(original, batch), output(compressed, batch)
                trial.add(*said[output], batch)
            if clear(trials):
                break
    for trial in trials:
        trial.finish()
    certificates = {trial.metric.name: trial.certifier.certificate for trial in trials}
    return joint(certificates) if len(trials) > 1 else certificates[trials[0].metric.name]


def certify_beside(
    original: Float[Array, " n"], compressed: nn.Module, data: Any, by: str | Metric | Output, budget: Budget
) -> Certificate:
    """Whether a model keeps a budget beside what the original has scored on the same examples, in the same order.

    The original need not be in memory then; else as `certify_models`, of a metric that grades each example by itself.

    Raises:
        DataError: there are no examples, or they do not fit the metric; or it takes two models.
    """
    kind = metric(by)
    if kind.whole is not None or kind.against is not None:
        return kind.certify(original, kind.scores(compressed, data), budget)
    certifier, done = kind.certifier(budget), 0
    with evaluating(compressed):
        for batch in pieces(data, kind.examples, compressed, kind.tokens):
            graded = array(kind.score(kind.output(compressed, batch), batch))
            certifier.add(original[done : done + len(graded)], graded)
            done += len(graded)
            if certifier.verdict in ("PASS", "FAIL"):
                break
    return certifier.certificate


def clear(trials: list[Trial]) -> bool:
    """Whether more examples would say nothing else: one metric has failed, or all have passed."""
    verdicts = [trial.certifier.verdict for trial in trials]
    return "FAIL" in verdicts or set(verdicts) == {"PASS"}
