"""The key-value cache as pages: who owns which. No tensors here."""

from lissom.engine.sequence import Sequence

PAGE = 16  # tokens of a page; small enough to waste little at the end of a sequence, large enough to gather fast


def pages_for(tokens: int) -> int:
    """How many pages hold that many tokens."""
    return -(-tokens // PAGE)


class Pages:
    """Hands out pages to sequences and takes them back."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total - 1, -1, -1))  # the page freed last is used first: memory stays small and warm

    @property
    def free(self) -> int:
        """Pages nobody owns."""
        return len(self._free)

    def fits(self, sequence: Sequence, tokens: int) -> bool:
        """Whether the sequence can grow to that many tokens now."""
        return pages_for(tokens) - len(sequence.pages) <= self.free

    def grow(self, sequence: Sequence, tokens: int) -> None:
        """Give the sequence the pages it needs to hold that many tokens."""
        assert self.fits(sequence, tokens)
        while len(sequence.pages) < pages_for(tokens):
            sequence.pages.append(self._free.pop())

    def release(self, sequence: Sequence) -> None:
        """Take all pages of the sequence back; what was in them has to be computed again."""
        self._free.extend(reversed(sequence.pages))
        sequence.pages.clear()
        sequence.cached = 0
