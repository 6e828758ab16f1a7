"""Running models over examples: a few at a time, in evaluation mode, and left as they were."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lissom.calibrate import Batch, batches
from lissom.calibrate.data import device_of, each, tensors
from lissom.errors import DataError
from lissom.estimate import Array


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Without dropout and gradients; afterwards every module is in the mode in which it was."""
    # The attribute, for .eval() is refused by exported graphs and .train() forgets which parts were frozen.
    training = [part for model in models for part in model.modules() if part.training]
    for part in training:
        part.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True


def pieces(data: Any, examples: int, model: nn.Module, tokens: int | None = None) -> Iterator[Batch]:
    """The batches of the data, cut to at most so many examples, and windows to so many tokens, where the model is.

    Raises:
        DataError: no examples are in it.
    """
    device = device_of(model)
    seen = 0
    for batch in batches(data):
        first = tensors(batch)[0]
        count, several = len(first), examples
        if tokens is not None and first.dim() == 2 and not first.is_floating_point():
            several = max(1, min(examples, tokens // first.shape[1]))
        for start in range(0, count, several):
            yield each(batch, lambda part: part[start : start + several].to(device))  # noqa: B023, called at once
        seen += count
    if not seen:
        raise DataError("data: no examples are in it (an iterator can be read once only; give a list or a DataLoader)")


def array(scores: Float[Tensor, "n *k"] | Bool[Tensor, " n"]) -> Float[Array, "n *k"]:
    """Numbers of examples, for statistics."""
    return scores.double().cpu().numpy()
