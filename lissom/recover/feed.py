"""The feed: which examples are learned from at which step, so that who goes on where it was learns the same.

Examples that are tensors are shuffled anew for each pass. Batches that come in an order of their own (a list of them, a
DataLoader, a stream) keep it, and so do their sizes. Of several processes each learns from its share of every batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sized
from functools import cached_property
from itertools import islice, pairwise
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from lissom.calibrate import Batch, batches
from lissom.calibrate.data import each
from lissom.errors import DataError
from lissom.techniques.knobs import at_least, fraction, seed_of

HELD, TOKENS = 256, 2**14  # examples that are held out, at most, and tokens of text: each look runs all of them


class Lot(NamedTuple):
    """Examples, and their numbers; None where they have none."""

    batch: Batch
    numbers: Tensor | None = None

    def share(self, rank: int, world: int) -> "Lot":
        """Every so manyth example, from the rank's on."""
        if world == 1:
            return self
        own = slice(rank, None, world)
        return Lot(each(self.batch, lambda part: part[own]), None if self.numbers is None else self.numbers[own])

    def parts(self, count: int) -> list["Lot"]:
        """As many parts, as equal as they can be; fewer where there are fewer examples."""
        n = size(self.batch)
        ends = [n * part // count for part in range(count + 1)]
        cuts = [slice(a, b) for a, b in pairwise(ends) if a < b]
        numbers = [None if self.numbers is None else self.numbers[cut] for cut in cuts]
        pieces = [each(self.batch, lambda part: part[cut]) for cut in cuts]  # noqa: B023, called at once
        return [Lot(*pair) for pair in zip(pieces, numbers, strict=True)]


class Feed(ABC):
    """What is learned from, and what is held out to judge by."""

    held: list[Lot]

    @property
    @abstractmethod
    def steps(self) -> int | None:
        """Steps of a pass over all; None where that is not known."""

    @abstractmethod
    def lots(self, first: int) -> Iterator[Lot]:
        """What is learned from, step by step without end, from the step of this number on."""

    @property
    def sample(self) -> Lot:
        """A batch such as is learned from, of which nothing is used up."""
        return self.held[0]


class Examples(Feed):
    """Tensors whose first dim is the examples."""

    def __init__(self, data: Batch, batch: int, held: float | Batch, seed: int, split: int) -> None:
        at_least(1, batch=batch)
        self.data, self.seed = data, seed_of(seed)
        n = size(data)
        if isinstance(held, float | int):
            fraction(held=held)
            order = torch.randperm(n, generator=drawn(split, 0))
            most = max(1, TOKENS // data.shape[1]) if is_text(data) else HELD
            share = min(max(round(held * n), 1), most, n - 1)
            apart, self.numbers = order[:share].sort().values, order[share:]
        else:
            self.data = joined(data, held)
            apart, self.numbers = torch.arange(n, size(self.data)), torch.arange(n)
        if not len(self.numbers) or not len(apart):
            raise DataError(f"data: {n} examples are too few to learn from and to judge by; give two or more")
        self.batch = min(batch, len(self.numbers))
        self.held = Lot(self.taken(apart), apart).parts(-(-len(apart) // self.batch))

    def taken(self, numbers: Tensor) -> Batch:
        """The examples of these numbers."""
        return each(self.data, lambda part: part[numbers])

    def chunks(self, count: int) -> Iterator[Lot]:
        """All examples, also those that are held out, so many at a time and in the order of their numbers."""
        for numbers in torch.arange(size(self.data)).split(count):
            yield Lot(self.taken(numbers), numbers)

    @property
    def steps(self) -> int:
        """Whole batches of the examples."""
        return len(self.numbers) // self.batch

    @property
    def sample(self) -> Lot:
        """The first batch."""
        return next(self.lots(0))

    def lots(self, first: int) -> Iterator[Lot]:
        """Passes, each in an order of its own; what does not fill a batch waits for another pass."""
        epoch, place = divmod(first, self.steps)
        while True:
            order = self.numbers[torch.randperm(len(self.numbers), generator=drawn(self.seed, epoch + 1))]
            for step in range(place, self.steps):
                numbers = order[step * self.batch : (step + 1) * self.batch]
                yield Lot(self.taken(numbers), numbers)
            epoch, place = epoch + 1, 0


class Batches(Feed):
    """Batches in the order that they come in; the first ones are held out, unless others are given."""

    def __init__(self, data: Iterable[Any], held: float | Iterable[Any]) -> None:
        self.data = data
        self.skip = 0
        if isinstance(held, float | int):
            fraction(held=held)
            known = count_of(data)
            self.skip = 1 if known is None else min(max(round(held * known), 1), max(known - 1, 0))
            found = list(islice(batches(data), self.skip))
            if known is None and iter(data) is data:  # it can be read once only, and that was it
                self.skip = 0
        else:
            found = list(batches(held))
        self.held = [Lot(batch) for batch in found]
        if not self.held:
            raise DataError("data: nothing is there to judge by; give two batches or more, or held= batches of its own")

    @cached_property
    def steps(self) -> int | None:
        """As many as there are batches, where that is known."""
        known = count_of(self.data)
        return None if known is None else known - self.skip

    def lots(self, first: int) -> Iterator[Lot]:
        """Pass after pass; what was learned from already is read again, and left out."""
        while True:
            several = islice(batches(self.data), self.skip, None)
            count = 0
            for count, batch in enumerate(several, 1):  # noqa: B007, counted for afterwards
                if first:
                    first -= 1
                else:
                    yield Lot(batch)
            if not count:
                raise DataError(
                    "data: it has come to its end (an iterator can be read once only); give a list, a DataLoader, or "
                    "fewer steps"
                )


def feed(data: Any, *, batch: int = 16, held: Any = 0.05, seed: int = 0, split: int = 0) -> Feed:
    """What is learned from, out of data in any shape.

    Args:
        data: one batch of all examples (a tensor, (inputs, targets), a dict), or batches one after the other.
        batch: examples of a step, where the data is one batch.
        held: what is judged by: the share that is held out, of examples at random and 256 at most, of text 16,384
            tokens, of batches the first; or data of its own in the same shape.
        seed: of the order.
        split: the seed by which examples are held out.

    Raises:
        DataError: there is too little data.
    """
    if isinstance(data, Tensor | tuple | dict):
        return Examples(next(iter(batches(data))), batch, held, seed, split)
    return Batches(data, held)


def drawn(seed: int, number: int) -> torch.Generator:
    """Random numbers, others for each number."""
    return torch.Generator().manual_seed((seed_of(seed) * 1_000_003 + number) % 2**63)


def joined(batch: Batch, other: Batch) -> Batch:
    """The examples of both.

    Raises:
        DataError: they are not of one shape.
    """
    try:
        if isinstance(batch, Tensor) and isinstance(other, Tensor):
            return torch.cat([batch, other])
        if isinstance(batch, tuple) and isinstance(other, tuple):
            return tuple(torch.cat(pair) for pair in zip(batch, other, strict=True))
        if isinstance(batch, Mapping) and isinstance(other, Mapping) and batch.keys() == other.keys():
            return {name: torch.cat([part, other[name]]) for name, part in batch.items()}
    except (RuntimeError, ValueError):
        pass
    raise DataError("held: what is judged by must have the shape of the data, but for the number of examples")


def count_of(data: Iterable[Any]) -> int | None:
    """How many batches there are, where that is known."""
    return len(data) if isinstance(data, Sized) else None


def size(batch: Batch) -> int:
    """How many examples a batch has."""
    if isinstance(batch, Tensor):
        return len(batch)
    return len(batch[0] if isinstance(batch, tuple) else next(iter(batch.values())))


def is_text(batch: Batch) -> TypeGuard[Tensor]:
    """Whether a batch is windows of tokens."""
    return isinstance(batch, Tensor) and batch.dim() == 2 and not batch.is_floating_point()


def counted(batch: Batch) -> int:
    """What is counted of a batch: tokens where it is windows of them, else examples."""
    return batch.numel() if is_text(batch) else size(batch)
