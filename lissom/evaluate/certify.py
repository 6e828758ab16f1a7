"""Two models on examples until the certificate is clear, and not longer.

Shapes: n examples.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

from lissom.calibrate import Batch
from lissom.errors import DataError
from lissom.estimate import Array, Certificate, Certifier, joint
from lissom.evaluate.examples import array, evaluating
from lissom.evaluate.metric import Metric, Output, lots, metric, read
from lissom.types import Budget

Budgets = Mapping[Metric, Budget]
Given = Mapping[str, Budget] | Budgets | Mapping[str | Metric | Output, Budget]  # by name, itself, or a function


def budgets_of(given: Given) -> dict[Metric, Budget]:
    """The metrics that names and functions stand for, each with its budget.

    Raises:
        DataError: there is none, one is there twice, or a budget is none that its metric can have.
    """
    kinds = [(metric(by), budget) for by, budget in given.items()]
    if not kinds:
        raise DataError("budgets: there are none; give at least one metric with its budget, {'accuracy': Budget()}")
    names = [kind.name for kind, _ in kinds]
    if len(set(names)) < len(names):
        raise DataError(f"budgets: {', '.join(names)} name a metric twice; give one budget for each")
    for kind, budget in kinds:
        if not isinstance(budget, Budget):
            raise DataError(f"budget: {budget!r} is none; write lissom.Budget(max_drop=0.01), or {{metric: that}}")
        kind.certifier(budget)  # refuses what cannot be tested
    return dict(kinds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A metric, its certificate so far, and what cannot be fed to it before all examples are there."""

    metric: Metric
    certifier: Certifier
    held: list[tuple[Array, Array]] = field(default_factory=list)

    def add(self, original: Tensor, compressed: Tensor, batch: Batch) -> None:
        """More examples, by what two models say of them."""
        self.feed(*self.metric.pair(original, compressed, batch))

    def feed(self, original: Array, compressed: Array) -> None:
        """More examples, by what two models are graded of them."""
        if self.metric.whole is None:
            self.certifier.add(original, compressed)
        else:
            self.held.append((original, compressed))

    def finish(self) -> None:
        """Feed what was held back."""
        if self.held:
            self.certifier.add(*(self.metric.together(list(parts)) for parts in zip(*self.held, strict=True)))


def certify_models(
    original: nn.Module,
    compressed: nn.Module,
    data: Any,
    budgets: Given,
    *,
    clusters: ArrayLike | None = None,
    planned: int | None = None,
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
        planned: how many examples, or clusters of them, there will be; settled before any was looked at (`Certifier`).

    Raises:
        DataError: there are no examples, or they do not fit a metric; or there is no metric, or one twice.
    """
    kinds = budgets_of(budgets)
    trials = [Trial(metric=kind, certifier=kind.certifier(budget, clusters, planned)) for kind, budget in kinds.items()]
    with evaluating(original, compressed):
        for batch in lots(data, kinds, original):
            said: dict[Output, tuple[Tensor, Tensor]] = {}
            for trial in trials:
                output = trial.metric.output
                if output not in said:
                    said[output] = output(original, batch), output(compressed, batch)
                trial.add(*said[output], batch)
            if clear(trials):
                break
    return verdict_of(trials)


def certify_beside(
    original: Mapping[str, Array],
    compressed: nn.Module,
    data: Any,
    budgets: Budgets,
    *,
    clusters: ArrayLike | None = None,
    planned: int | None = None,
) -> Certificate:
    """As `certify_models`, beside what the original was graded on the same examples, which need not be in memory then.

    Args:
        original: its `grades` by each metric's name, none of which is between two models.
        compressed, data, budgets, clusters, planned: as for `certify_models`.

    Raises:
        DataError: there are no examples, or they do not fit a metric.
    """
    trials = [
        Trial(metric=kind, certifier=kind.certifier(budget, clusters, planned)) for kind, budget in budgets.items()
    ]
    done = 0
    with evaluating(compressed):
        for batch in lots(data, budgets, compressed):
            said: dict[Output, Tensor] = {}
            for trial in trials:
                graded = array(trial.metric.score(read(trial.metric.output, compressed, batch, said), batch))
                trial.feed(original[trial.metric.name][done : done + len(graded)], graded)
            done += len(graded)
            if clear(trials):
                break
    return verdict_of(trials)


def grades(model: nn.Module, data: Any, kinds: Collection[Metric]) -> dict[str, Array]:
    """What a model is graded on each example, by each metric; it runs once for all that read the same output.

    Raises:
        DataError: there are no examples, or they do not fit a metric.
    """
    found: dict[str, list[Array]] = {kind.name: [] for kind in kinds}
    with evaluating(model):
        for batch in lots(data, kinds, model):
            said: dict[Output, Tensor] = {}
            for kind in kinds:
                found[kind.name].append(array(kind.score(read(kind.output, model, batch, said), batch)))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def verdict_of(trials: list[Trial]) -> Certificate:
    """The certificate of all metrics together."""
    for trial in trials:
        trial.finish()
    certificates = {trial.metric.name: trial.certifier.certificate for trial in trials}
    return joint(certificates) if len(trials) > 1 else certificates[trials[0].metric.name]


def clear(trials: list[Trial]) -> bool:
    """Whether more examples would say nothing else: one metric has failed, or all have passed."""
    verdicts = [trial.certifier.verdict for trial in trials]
    return "FAIL" in verdicts or set(verdicts) == {"PASS"}
