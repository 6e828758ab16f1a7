"""Which tokens of which sequences run in the next forward pass. No tensors here.

Those that run are in the order in which they came to run: older ones decode first, and when pages run out it is the
youngest that gives its own up and waits to be run again. So the oldest always makes progress and nobody starves. Of
those that wait, one that has run already comes first; then the lowest priority, then the owner for whom least has been
done (fairness.py), then the one that came first.

A sequence whose beginning is computed for another one in this very pass waits for the next, and takes it over: several
continuations of one prompt cost one reading of it.
"""

from collections import deque
from dataclasses import dataclass

from lissom.engine.fairness import Fairness
from lissom.engine.pages import Pages, filled
from lissom.engine.sequence import Sequence

READ = 64  # tokens of prompts after which the logits are wanted, at once: those of each are as large as the vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Tokens `start` up to `start + count` of a sequence and its guesses, to be run now."""

    sequence: Sequence
    start: int
    count: int

    @property
    def completes(self) -> bool:
        """Whether the last token known is among them, or one behind it, so that the next one can be chosen."""
        return self.start + self.count >= self.sequence.length

    @property
    def read(self) -> range:
        """After which of its tokens the logits are wanted for the next one of the prompt, which is known."""
        if not self.sequence.reading:
            return range(0)
        last = len(self.sequence.prompt) - 1 - self.start
        return range(max(len(self.sequence.read) - self.start, 0), min(self.count, last))

    @property
    def chosen(self) -> range:
        """After which of its tokens a next one is chosen: the last one known, and every guess."""
        return range(max(self.sequence.length - 1 - self.start, 0), self.count if self.sequence.limit else 0)

    @property
    def wanted(self) -> tuple[int, ...]:
        """After which of its tokens the logits are wanted."""
        return (*self.read, *self.chosen)

    @property
    def keys(self) -> list[bytes]:
        """The keys of the pages that it fills."""
        return filled(self.sequence, self.start, self.start + self.count)


class Schedule:
    """The sequences that wait, and those that run, oldest first."""

    def __init__(self, pages: Pages, *, max_batch: int, chunk: int) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.reused_tokens = 0
        self._pages = pages
        self._max_batch = max_batch
        self._chunk = chunk
        self._fairness = Fairness()

    def add(self, sequence: Sequence) -> None:
        """Let the sequence wait for its turn."""
        present = {one.owner for one in (*self.running, *self.waiting)}
        if sequence.owner not in present:
            self._fairness.join(sequence.owner, present)
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget the sequence, which has finished or is no longer wanted."""
        self._pages.release(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def plan(self) -> list[Slice]:
        """The slices of the next pass: one token of each that decodes, and at most `chunk` tokens of prompts."""
        budget, read, slices = self._chunk, READ, list[Slice]()
        for sequence in tuple(self.running):
            room = 1 if sequence.pending == 1 else min(budget, read) if sequence.reading else budget
            count = min(sequence.pending, room)
            if sequence in self.running and count and self._make_room(sequence, sequence.cached + count):
                slices.append(Slice(sequence=sequence, start=sequence.cached, count=count))
                budget -= count if sequence.pending > 1 else 0
                read -= len(slices[-1].read)
        while budget and self._admit(slices):
            sequence = self.running[-1]
            if count := min(sequence.pending, budget, read if sequence.reading else budget):
                slices.append(Slice(sequence=sequence, start=sequence.cached, count=count))
                budget -= count
                read -= len(slices[-1].read)
        return slices

    def stretch(self, sequence: Sequence, guesses: int) -> int:
        """Give the sequence room for so many guesses, or for fewer, so that no other has to give way; for how many."""
        return self._pages.stretch(sequence, guesses)

    def record(self, slices: list[Slice]) -> None:
        """Note that the slices have been run and tokens chosen: what they cached of those can be reused.

        The last token chosen has not been run; guesses that were wrong leave nothing behind.
        """
        for piece in slices:
            sequence = piece.sequence
            reading = max(min(piece.count, len(sequence.prompt) - piece.start), 0)
            self._fairness.count(sequence.owner, read=reading, written=bool(piece.completes))
            sequence.guesses.clear()
            sequence.cached = min(piece.start + piece.count, sequence.length - 1)
            sequence.drafted = min(sequence.drafted, sequence.length - 1)
            self._pages.keep(sequence, piece.start)
            self._pages.shrink(sequence, sequence.length)

    def _admit(self, slices: list[Slice]) -> bool:
        """Let the next that waits run, unless it waits for one of the slices to compute its beginning.

        The whole prompt must fit: half of one would hold pages that those already running need to finish.
        """
        if not self.waiting or len(self.running) >= self._max_batch:
            return False
        sequence = min(self.waiting, key=self._turn)
        coming = {key for piece in slices for key in piece.keys}
        if not coming.isdisjoint(self._pages.missing(sequence)) or not self._pages.admit(sequence):
            return False
        self.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.begun = True
        self.reused_tokens += sequence.cached
        if not sequence.generated:
            sequence.reused = sequence.cached
        return True

    def _turn(self, sequence: Sequence) -> tuple[bool, int, float]:
        """The lower, the sooner its turn comes."""
        return not sequence.begun, sequence.priority, self._fairness.of(sequence.owner)

    def _make_room(self, sequence: Sequence, tokens: int) -> bool:
        """Grow the sequence, at the cost of the youngest ones; False where it had to give way itself."""
        while not self._pages.fits(sequence, tokens):
            youngest = self.running.pop()
            self._pages.release(youngest)
            self.waiting.appendleft(youngest)
            self.preemptions += 1
            if youngest is sequence:
                return False
        self._pages.grow(sequence, tokens)
        return True
