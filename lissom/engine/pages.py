"""The key-value cache as pages: who owns which, and what lies in those that nobody owns. No tensors here.

A page that is full and computed has a key, a digest of all tokens up to its end. A sequence that begins with the same
tokens takes the page as it is (Zheng et al., SGLang, NeurIPS 2024, arXiv:2312.07104, by pages instead of a tree). It is
never written again; when its last owner has gone it stays until its place is needed.
"""

from array import array
from collections import OrderedDict
from hashlib import sha256
from itertools import takewhile

from lissom.engine.sequence import Sequence

PAGE = 16  # tokens of a page; small enough to waste little at the end of a sequence, large enough to gather fast


def pages_for(tokens: int) -> int:
    """How many pages hold that many tokens."""
    return -(-tokens // PAGE)


def filled(sequence: Sequence, start: int, stop: int) -> list[bytes]:
    """The keys of the pages that become full with tokens `start` up to `stop` of the sequence."""
    for begin in range(len(sequence.keys) * PAGE, sequence.length - PAGE + 1, PAGE):
        before = sequence.keys[-1] if sequence.keys else b""
        tokens = array("q", sequence.tokens(begin, begin + PAGE)).tobytes()
        sequence.keys.append(sha256(before + tokens).digest())
    return sequence.keys[start // PAGE : stop // PAGE]


class Pages:
    """Hands out pages to sequences and takes them back."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._blank = list(range(total - 1, -1, -1))  # the page freed last is used first: memory stays small and warm
        self._idle = OrderedDict[int, None]()  # pages with a key that nobody owns, the one not used for longest first
        self._owners = [0] * total
        self._key = dict[int, bytes]()
        self._page = dict[bytes, int]()

    @property
    def free(self) -> int:
        """Pages nobody owns."""
        return len(self._blank) + len(self._idle)

    def fits(self, sequence: Sequence, tokens: int) -> bool:
        """Whether the sequence can grow to that many tokens now."""
        return pages_for(tokens) - len(sequence.pages) <= self.free

    def grow(self, sequence: Sequence, tokens: int) -> None:
        """Give the sequence the pages it needs to hold that many tokens."""
        assert self.fits(sequence, tokens)
        while len(sequence.pages) < pages_for(tokens):
            page = self._blank.pop() if self._blank else self._emptied()
            self._owners[page] = 1
            sequence.pages.append(page)

    def stretch(self, sequence: Sequence, guesses: int) -> int:
        """Give the sequence pages for so many more tokens, as far as there are free ones; for how many there are."""
        room = min(guesses, (len(sequence.pages) + self.free) * PAGE - sequence.length)
        self.grow(sequence, sequence.length + room)
        return room

    def missing(self, sequence: Sequence) -> list[bytes]:
        """The keys of the sequence's beginning that no page has; none where all of it must be run in any case."""
        if sequence.reading:
            return []
        return [key for key in filled(sequence, 0, sequence.length - 1) if key not in self._page]

    def admit(self, sequence: Sequence) -> bool:
        """Give the sequence pages for all its tokens, those that hold its beginning first; False if there are too few.

        At least one token is left to be run, since the next one is chosen by what comes out of that.
        """
        keys = [] if sequence.reading else filled(sequence, 0, sequence.length - 1)
        found = [self._page[key] for key in takewhile(self._page.__contains__, keys)]
        if pages_for(sequence.length) - len(found) > self.free - sum(page in self._idle for page in found):
            return False
        for page in found:
            self._idle.pop(page, None)
            self._owners[page] += 1
        sequence.pages.extend(found)
        sequence.cached = len(found) * PAGE
        self.grow(sequence, sequence.length)
        return True

    def keep(self, sequence: Sequence, start: int) -> None:
        """Let others use the pages that have become full since `start` tokens were cached."""
        for page, key in zip(sequence.pages[start // PAGE :], filled(sequence, start, sequence.cached), strict=False):
            if key not in self._page:
                self._page[key], self._key[page] = page, key

    def release(self, sequence: Sequence) -> None:
        """Take the sequence's part in all its pages back."""
        self.shrink(sequence, 0)
        sequence.cached = sequence.drafted = 0

    def shrink(self, sequence: Sequence, tokens: int) -> None:
        """Take the sequence's part in the pages behind so many tokens back; its end will be the first to be emptied."""
        while len(sequence.pages) > pages_for(tokens):
            page = sequence.pages.pop()
            self._owners[page] -= 1
            if not self._owners[page] and page in self._key:
                self._idle[page] = None
            elif not self._owners[page]:
                self._blank.append(page)

    def _emptied(self) -> int:
        page, _ = self._idle.popitem(last=False)
        del self._page[self._key.pop(page)]
        return page
