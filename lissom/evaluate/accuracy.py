"""Accuracy: is the class with the largest logit the right one?

Shapes: n examples, c classes.
"""

from collections.abc import Mapping

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lissom.calibrate import Batch, call
from lissom.calibrate.data import TARGETS, logits_in
from lissom.errors import DataError


def classify(model: nn.Module, batch: Batch) -> Float[Tensor, "n c"]:
    """The logits of each example's classes: the output, what is called so in it, or the first of several.

    Raises:
        DataError: the model's output is none.
    """
    output = call(model, batch)
    logits = logits_in(output)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        found = list(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
        raise DataError(f"accuracy: the model gave {found} where logits [examples, classes] are needed; give a metric")
    return logits.float()


def correct(logits: Float[Tensor, "n c"], batch: Batch) -> Bool[Tensor, " n"]:
    """Whether each example is classified rightly."""
    return logits.argmax(-1) == targets(batch)


def targets(batch: Batch) -> Int[Tensor, " n"]:
    """The classes of a batch's examples.

    Raises:
        DataError: the batch has none.
    """
    found: Tensor | None = None
    if isinstance(batch, Mapping):
        found = next((batch[name] for name in TARGETS if name in batch), None)
    elif isinstance(batch, tuple) and len(batch) == 2:
        found = batch[1]
    if found is None or found.ndim != 1 or found.is_floating_point():
        raise DataError(
            "accuracy: each batch needs the class of every example; give (inputs, classes), or where targets are no "
            "classes a metric of your own, {function of a model and a batch to scores from 0 to 1: Budget(...)}"
        )
    return found
