"""What the original says to each batch of data, asked for when it is needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor, nn

from lissom.calibrate import Batch, batches, call
from lissom.compress.layers import said

ROOM = 2**30  # bytes of answers that are kept
Lot = tuple[Callable[[], Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taught(Sequence[Lot]):
    """For each batch how to run the model on it, and what the original says to it.

    Answers are kept while all that are kept take no more than `room` bytes; the others are asked for every time, for
    with a large vocabulary they are many times larger than the data.
    """

    model: nn.Module
    original: nn.Module
    data: Sequence[Batch]
    room: int = ROOM
    kept: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, original: nn.Module, data: Any) -> "Taught":
        """The lots of data in any shape; None is no data."""
        return cls(model=model, original=original, data=[] if data is None else list(batches(data)))

    def __len__(self) -> int:
        return len(self.data)

    @overload
    def __getitem__(self, place: int) -> Lot: ...

    @overload
    def __getitem__(self, place: slice) -> "Taught": ...

    def __getitem__(self, place: int | slice) -> "Lot | Taught":
        if isinstance(place, slice):
            return Taught(model=self.model, original=self.original, data=self.data[place], room=self.room)
        return partial(answer, self.model, self.data[place]), self.wanted(range(len(self))[place])

    def wanted(self, place: int) -> Tensor:
        """What the original says to a batch."""
        if place in self.kept:
            return self.kept[place]
        with torch.no_grad():
            found = answer(self.original, self.data[place])
        if sum(other.nbytes for other in self.kept.values()) + found.nbytes <= self.room:
            self.kept[place] = found
        return found


def answer(model: nn.Module, batch: Batch) -> Tensor:
    """What a model says to a batch."""
    return said(model, call(model, batch))
