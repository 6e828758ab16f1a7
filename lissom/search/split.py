"""Dividing examples among calibrating, choosing and certifying; what certifies was never looked at before."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lissom.calibrate import Batch, batches
from lissom.calibrate.data import each
from lissom.errors import DataError
from lissom.evaluate import Metric
from lissom.evaluate.examples import tensors
from lissom.types import Budget

CALIBRATE, CHOOSE = 0.2, 0.3  # the rest certifies


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Three lots of examples with none in common."""

    calibration: Batch
    selection: Batch
    certification: Batch


def split(data: Any, metric: Metric, budget: Budget, seed: int = 0) -> Split:
    """Shuffle the examples and divide them.

    Raises:
        DataError: too few would be left to certify with; the message says how many are needed.
    """
    examples = joined(data)
    n = len(tensors(examples)[0])
    first, second = int(n * CALIBRATE), int(n * (CALIBRATE + CHOOSE))
    fewest = metric.fewest_examples(budget)
    if n - second < fewest:
        needed = -(-fewest * 100 // round(100 * (1 - CALIBRATE - CHOOSE)))
        raise DataError(
            f"data: {n} examples are too few to certify a drop of {budget.max_drop:.2%} at {budget.confidence:.0%} "
            f"confidence; at least {needed} are needed, of which {fewest} certify"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    lots = [taken(examples, lot) for lot in order.tensor_split([first, second])]
    return Split(calibration=lots[0], selection=lots[1], certification=lots[2])


def taken(examples: Batch, which: Int[Tensor, " n"]) -> Batch:
    """Some of the examples."""
    return each(examples, lambda part: part[which])


def joined(data: Any) -> Batch:
    """All batches as one."""
    found = list(batches(data))
    if not found:
        raise DataError("data: no examples are in it; give a list, a DataLoader or tensors")
    first = found[0]
    if isinstance(first, Tensor):
        return torch.cat([tensors(batch)[0] for batch in found])
    if isinstance(first, tuple):
        return tuple(torch.cat(parts) for parts in zip(*map(tensors, found), strict=True))
    return {name: torch.cat([batch[name] for batch in found]) for name in first}  # type: ignore[index, call-overload]
