"""The forward pass of a language model that is a program: slices of sequences in, logits out. Without PyTorch."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from lissom.engine.passes import Part, Passes
from lissom.engine.schedule import Slice

if TYPE_CHECKING:
    from jaxtyping import Float


class NativeRunner:
    """Runs a decoder language model over a paged cache, as a program."""

    def __init__(self, passes: Passes) -> None:
        self.passes = passes

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache of all layers."""
        return self.passes.how.cache_bytes

    def forward(self, slices: Sequence[Slice]) -> "Float[np.ndarray, 'r v']":
        """Run the slices; return the logits after the last known token of each sequence and after each guess.

        The next call overwrites them.
        """
        passes = list(cut(slices, self.passes.how.rows))
        if len(passes) == 1:
            return self._run(passes[0])
        return np.concatenate([self._run(pieces).copy() for pieces in passes])

    def _run(self, pieces: Sequence[Slice]) -> "Float[np.ndarray, 'r v']":
        firsts = accumulate((piece.count for piece in pieces), initial=0)
        picked = [first + at for first, piece in zip(firsts, pieces, strict=False) for at in piece.wanted]
        return self.passes.run([part_of(piece) for piece in pieces], picked)


def part_of(piece: Slice) -> Part:
    """A slice as a program is given it."""
    tokens = piece.sequence.tokens(piece.start, piece.start + piece.count)
    return Part(tokens, piece.start, piece.sequence.pages)


def cut(slices: Sequence[Slice], rows: int) -> Iterator[list[Slice]]:
    """The slices in order, in passes of at most so many tokens."""
    taken, room = list[Slice](), rows
    for piece in slices:
        start, left = piece.start, piece.count
        while left:
            if not room:
                yield taken
                taken, room = [], rows
            count = min(left, room)
            taken.append(Slice(sequence=piece.sequence, start=start, count=count))
            start, left, room = start + count, left - count, room - count
    yield taken
