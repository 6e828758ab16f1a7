"""Guesses from a draft: a smaller model of the same vocabulary, which says for each sequence what it would say.

The draft's cache has the same pages as the model's: what a sequence owns in the one, it owns in the other, and nobody
keeps accounts twice. The draft may be behind; what it has not seen it reads when it is asked for a guess.
"""

from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import TYPE_CHECKING

from lissom.engine.costs import Line
from lissom.engine.pages import PAGE
from lissom.engine.schedule import Slice
from lissom.engine.sequence import Sequence

if TYPE_CHECKING:
    from lissom.engine.native_runner import NativeRunner
    from lissom.engine.runner import Runner


class Draft:
    """Guesses the most probable tokens of its model, for many sequences in each pass."""

    def __init__(self, runner: "Runner | NativeRunner", *, chunk: int, clock: Callable[[], float]) -> None:
        self.line = Line()  # what a pass costs
        self._runner = runner
        self._chunk = chunk
        self._clock = clock
        self._held = dict[int, bytes]()  # the key of what the draft has in a page

    def guess(self, wanted: Mapping[Sequence, int]) -> None:
        """Add so many guesses to each sequence; none where there is still too much to be read before."""
        for sequence in wanted:
            sequence.drafted = sequence.drafted or self._found(sequence)
        starts = {sequence: sequence.drafted for sequence in wanted}
        ready = [sequence for sequence in wanted if sequence.length - sequence.drafted <= self._chunk]
        if behind := [_ahead(sequence, self._chunk) for sequence in wanted if sequence not in ready]:
            self._run(behind)
        while ready := [sequence for sequence in ready if len(sequence.guesses) < wanted[sequence]]:
            for sequence, token in zip(ready, self._run([_ahead(sequence) for sequence in ready]), strict=True):
                sequence.guesses.append(token)
        for sequence, start in starts.items():
            first, last = start // PAGE, min(sequence.drafted, sequence.length) // PAGE
            self._held.update(zip(sequence.pages[first:last], sequence.keys[first:last], strict=False))

    def _found(self, sequence: Sequence) -> int:
        """How many tokens of its beginning the draft has in the sequence's pages, for it or for another one."""
        pairs = zip(sequence.pages, sequence.keys, strict=False)
        known = sum(1 for _ in takewhile(lambda pair: self._held.get(pair[0]) == pair[1], pairs))
        return min(known * PAGE, sequence.length - 1)

    def _run(self, slices: list[Slice]) -> list[int]:
        """One pass; the most probable token after each sequence that it completes."""
        begun = self._clock()
        logits = self._runner.forward(slices)
        tokens = [int(row.argmax()) for row in logits]
        rows = sum(piece.count for piece in slices)
        if rows <= 2 * len(slices):  # more where there was something to be read first
            self.line.see(rows, self._clock() - begun)
        for piece in slices:
            piece.sequence.drafted = piece.start + piece.count
        return tokens


def _ahead(sequence: Sequence, most: int | None = None) -> Slice:
    """What the draft has not seen of a sequence and its guesses, or the first of it."""
    missing = sequence.length + len(sequence.guesses) - sequence.drafted
    return Slice(sequence=sequence, start=sequence.drafted, count=missing if most is None else min(most, missing))
