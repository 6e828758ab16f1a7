"""A metric: what quality means, as a score for each example, of which more is better.

Shapes: n examples.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor, nn

from lissom.calibrate import Batch
from lissom.errors import DataError
from lissom.estimate import (
    Array,
    Bounds,
    Certificate,
    Certifier,
    Estimate,
    fewest_examples,
    mean_estimate,
    perplexity,
    proportion,
)
from lissom.evaluate import accuracy, agreement, language
from lissom.evaluate.examples import array, evaluating, pieces
from lissom.types import Budget

Output = Callable[[nn.Module, Batch], Tensor]
Score = Callable[[Tensor, Batch], Tensor]
Against = Callable[[Tensor, Tensor], Tensor]
TOKENS = 1024  # at once: their logits are many, one for each entry of a vocabulary


def itself(output: Tensor, batch: Batch) -> Tensor:
    """The output is the score."""
    return output


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What quality means.

    `output` runs a model on a batch and `score` grades what it says, one number per example. Of a metric of the user's
    own, `output` gives the scores directly. `against` grades what a model says by what the original says instead.
    `whole` makes scores of what was graded where that takes all examples together. `logits` says that an output's last
    dim holds logits, so that two models' predictions can be compared. `summary` is the figure people know, of all the
    scores. A drop is a fraction of the range between the `bounds`, or of scores that are `logarithms` that of their
    exponential, relative to the original's. At most so many `examples` are run at once, and `tokens` of windows.
    """

    name: str
    output: Output
    score: Score = itself
    against: Against | None = None
    whole: Callable[[Array], Array] | None = None
    logits: bool = False
    summary: Callable[[Array], Estimate] = mean_estimate
    bounds: Bounds = (0.0, 1.0)
    logarithms: bool = False
    examples: int = 128
    tokens: int | None = None

    def scores(self, model: nn.Module, data: Any) -> Float[Array, " n"]:
        """The score of each example.

        Raises:
            DataError: there are no examples, or they do not fit the metric; or it takes two models.
        """
        if self.against is not None:
            raise DataError(f"{self.name} is between two models: compare with the original")
        with evaluating(model):
            graded = [array(self.score(self.output(model, batch), batch)) for batch in lots(data, [self], model)]
            return self.together(graded)

    def pair(self, original: Tensor, compressed: Tensor, batch: Batch) -> tuple[Array, Array]:
        """The scores of a batch's examples, by what two models say."""
        if self.against is not None:
            return array(self.against(original, original)), array(self.against(original, compressed))
        return array(self.score(original, batch)), array(self.score(compressed, batch))

    def together(self, parts: Sequence[Array]) -> Float[Array, " n"]:
        """The scores of all examples, of what was graded batch by batch."""
        graded = np.concatenate(parts)
        return graded if self.whole is None else self.whole(graded)

    def certifier(self, budget: Budget, clusters: ArrayLike | None = None, planned: int | None = None) -> Certifier:
        """What is fed with the scores of two models and says whether the drop stays inside the budget.

        Raises:
            DataError: the budget is a share of what the original has none of.
        """
        if budget.relative and self.against is not None and self.bounds is None:
            raise DataError(f"{self.name}: the original's own is 0, which has no shares; leave `relative` out")
        return Certifier(budget, bounds=self.bounds, logarithms=self.logarithms, clusters=clusters, planned=planned)

    def certify(self, original: Float[Array, " n"], compressed: Float[Array, " n"], budget: Budget) -> Certificate:
        """Whether the drop between the scores of two models stays inside the budget."""
        certifier = self.certifier(budget)
        certifier.add(original, compressed)
        return certifier.certificate

    def fewest_examples(self, budget: Budget) -> int:
        """The smallest number of examples with which a model can pass."""
        return fewest_examples(budget, bounds=self.bounds)


def lots(data: Any, kinds: Collection[Metric], model: nn.Module) -> Iterator[Batch]:
    """The batches of the data where a model is, none larger than each of some metrics takes.

    Raises:
        DataError: no examples are in it.
    """
    tokens = min((kind.tokens for kind in kinds if kind.tokens is not None), default=None)
    return pieces(data, min(kind.examples for kind in kinds), model, tokens)


def read(output: Output, model: nn.Module, batch: Batch, known: dict[Output, Tensor]) -> Tensor:
    """An output for a batch, of which the model is asked once."""
    if output not in known:
        known[output] = output(model, batch)
    return known[output]


def share(right: Float[Array, " n"]) -> Estimate:
    """The fraction of the examples that are right."""
    return proportion(int(right.sum()), right.size)


def lost(kl: Float[Array, " n"]) -> Estimate:
    """A mean of KL divergences, whose negatives are the scores."""
    return mean_estimate(-kl, unit="nats")


METRICS = {
    "accuracy": Metric(
        name="accuracy",
        output=accuracy.classify,
        score=accuracy.correct,
        logits=True,
        summary=share,
    ),
    "perplexity": Metric(
        name="perplexity",
        output=language.predict,
        score=language.log_likelihood,
        logits=True,
        summary=perplexity,
        bounds=None,
        logarithms=True,
        tokens=TOKENS,
    ),
    "agreement": Metric(
        name="agreement",
        output=agreement.predictions,
        against=agreement.same_top1,
        logits=True,
        tokens=TOKENS,
    ),
    "kl": Metric(
        name="kl",
        output=agreement.predictions,
        against=agreement.closeness,
        logits=True,
        summary=lost,
        bounds=None,
        tokens=TOKENS,
    ),
}


def metric(given: str | Metric | Output) -> Metric:
    """A metric from its name, itself, or a function (model, batch) -> scores between 0 and 1, one per example.

    Raises:
        DataError: there is none of that name.
    """
    if isinstance(given, Metric):
        return given
    if not isinstance(given, str):
        return Metric(name=getattr(given, "__name__", "score"), output=given)
    if given not in METRICS:
        raise DataError(
            f"metric: {given!r} is none of {', '.join(METRICS)}; a function (model, batch) -> scores is another"
        )
    return METRICS[given]
