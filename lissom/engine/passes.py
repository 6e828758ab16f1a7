"""A program that has been put together (program.py), and passes over it. Nothing here needs PyTorch.

What operations point to lies in three kinds of places: structs, which hold the pointers; data, which stay as they are;
and rooms, of which a pass needs no more than that they are there.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lissom.engine.kernels import native
from lissom.engine.kernels.native import structs
from lissom.engine.pages import PAGE
from lissom.errors import LissomError

if TYPE_CHECKING:
    from jaxtyping import Float, Int32, UInt8

LINE = 64  # bytes


class Part(NamedTuple):
    """Consecutive tokens of one sequence: their numbers, the position of the first, and the pages of the sequence."""

    tokens: Sequence[int]
    place: int
    pages: Sequence[int]


class Block(NamedTuple):
    """Bytes in memory, and whose they are: they lie there as long as that is kept."""

    address: int
    nbytes: int
    owner: object


@dataclass(slots=True)
class Memory:
    """What operations point to."""

    structs: list["ctypes.Structure | ctypes.Array[ctypes.Structure]"] = field(default_factory=list)
    data: list[Block] = field(default_factory=list)
    rooms: list[Block] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How a pass runs: of how many tokens at most, to how many logits, with which kernel, and on how many threads.

    Between operators of PyTorch, whose threads look for work for a while, it runs on these. `cache_bytes` are those of
    keys and values.
    """

    rows: int
    vocabulary: int
    cache_bytes: int
    kernel: int
    threads: int
    beside_torch: bool


class Passes:
    """Runs a program.

    Args:
        operations: all of it.
        ends: who is told where the logits go.
        how: the rest.
        held: what keeps that in its place to which operations point.
    """

    def __init__(
        self,
        operations: "ctypes.Array[structs.COperation]",
        ends: Sequence["structs.CProduct | structs.CBound"],
        how: How,
        held: object,
    ) -> None:
        self.operations, self.ends, self.how, self.held = operations, ends, how, held
        self._logits = np.empty((0, how.vocabulary), np.float32)

    def run(self, parts: Sequence[Part], picked: Sequence[int]) -> "Float[np.ndarray, 'r v']":
        """One pass over at most `rows` tokens: the logits of those that are picked, which the next pass overwrites.

        They are picked in their order.
        """
        self._tell(len(picked))
        counts = [len(part.tokens) for part in parts]
        tokens = integers([token for part in parts for token in part.tokens])
        places = np.concatenate(
            [
                np.arange(part.place, part.place + count, dtype=np.int32)
                for part, count in zip(parts, counts, strict=True)
            ]
        )
        pages = [integers(part.pages) for part in parts]
        rows = np.repeat(np.arange(len(parts)), counts)
        own = [page[places[rows == at] // PAGE] for at, page in enumerate(pages)]
        slots = np.concatenate(own) * PAGE + places % PAGE
        first = np.cumsum([0, *counts])
        listed = (structs.CPart * len(parts))(
            *(
                structs.CPart(int(first[at]), counts[at], part.place, pages[at].ctypes.data)
                for at, part in enumerate(parts)
            )
        )
        wanted = integers(picked)
        self._step(len(parts), listed, tokens=tokens, places=places, slots=slots, picked=wanted)
        return self._logits[: len(picked)]

    def encode(
        self,
        counts: Sequence[int],
        tokens: "Int32[np.ndarray, ' r']",
        places: "Int32[np.ndarray, ' r']",
        types: "Int32[np.ndarray, ' r']",
    ) -> None:
        """One pass over sequences of so many tokens each, of which nothing is kept; all indices are contiguous."""
        first = accumulate(counts, initial=0)
        listed = (structs.CPart * len(counts))(*map(structs.CPart, first, counts))
        self._step(len(counts), listed, tokens=tokens, places=places, types=types)

    def _step(self, count: int, parts: "ctypes.Array[structs.CPart]", **given: np.ndarray) -> None:
        """One pass over so many parts, given arrays of indices."""
        opened = native.library()
        assert opened is not None
        told = structs.CPass(rows=len(given["tokens"]), parts=count, part=ctypes.addressof(parts))
        told.picks = len(given["picked"]) if "picked" in given else 0
        for name, array in given.items():
            setattr(told, name, array.ctypes.data)
        how = (self.how.kernel, self.how.threads, self.how.beside_torch)
        if opened.lissom_step(self.operations, len(self.operations), ctypes.addressof(told), *how):
            raise LissomError(f"engine: no memory for a pass of {told.rows} tokens; use smaller chunks")

    def _tell(self, count: int) -> None:
        """Room for so many rows of logits."""
        if count <= len(self._logits):
            return
        self._logits = np.empty((count, self.how.vocabulary), np.float32)
        for end in self.ends:
            if isinstance(end, structs.CProduct):
                end.to = structs.CColumns(self._logits.ctypes.data, self.how.vocabulary)
            else:
                end.at = self._logits.ctypes.data


def untouched(count: int) -> "UInt8[np.ndarray, ' n']":
    """Zeros that take no memory until they are written to, aligned as the processor reads."""
    whole = np.zeros(count + LINE, dtype=np.uint8)
    return whole[-whole.ctypes.data % LINE :][:count]


def integers(values: Sequence[int]) -> "Int32[np.ndarray, ' n']":
    """As the library reads them."""
    return np.array(values, dtype=np.int32)
