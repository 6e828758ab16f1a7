"""Guesses from the text itself: where it ends as it ran before, it may go on as it did then. No tensors here.

Prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding). An index of short runs of tokens
takes the place of the search, so that a guess costs the same in a long text as in a short one.
"""

from itertools import cycle, islice

from lissom.engine.sequence import Sequence

RUNS = (4, 3, 2)  # tokens that must have come before in this order; the longest that have decide


class Lookup:
    """Where each short run of a sequence's tokens came last."""

    def __init__(self) -> None:
        self._behind = dict[tuple[int, ...], int]()  # the place behind a run
        self._read = 0

    def guesses(self, sequence: Sequence, most: int) -> list[int]:
        """What came behind the run that the sequence ends with, where that came last; nothing if it never did.

        If that is near the end, so that fewer than `most` tokens are known, the text repeats itself and goes on so.
        """
        recent = self._read_on(sequence)
        for run in RUNS:
            behind = self._behind.get(recent[-run:])
            if behind is not None:
                return list(islice(cycle(sequence.tokens(behind, min(behind + most, sequence.length))), most))
        return []

    def _read_on(self, sequence: Sequence) -> tuple[int, ...]:
        """Remember all runs but those that the sequence ends with; the last tokens, those at least."""
        first = max(self._read - max(RUNS), 0)
        tokens = tuple(sequence.tokens(first, sequence.length))
        for end in range(self._read, sequence.length):
            for run in RUNS:
                if run <= end:
                    self._behind[tokens[end - run - first : end - first]] = end
        self._read = sequence.length
        return tokens
