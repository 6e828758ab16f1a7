"""From tokens to text, a piece at a time: never half a character, never part of a stop string."""

from collections.abc import Callable

BROKEN = "\N{REPLACEMENT CHARACTER}"
Decode = Callable[[list[int]], str]


class Detokenizer:
    """Turns a stream of tokens into text that can be shown as soon as it is certain.

    A character may span several tokens, and how a token reads can depend on the one before it; so a window of recent
    tokens is decoded with and without the new ones, and the difference is the new text. Text that may yet turn out
    to be the beginning of a stop string is held back.
    """

    def __init__(self, decode: Decode, stop: tuple[str, ...] = ()) -> None:
        self.ended_by: str | None = None  # the stop string that was found
        self._decode = decode
        self._stop = stop
        self._window: list[int] = []
        self._shown = 0  # how many tokens of the window have been turned into text
        self._held = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self.ended_by is not None

    def push(self, token: int, *, armed: bool = True) -> str:
        """Take a token; return the text that has become certain. Stop strings count only when `armed`."""
        self._window.append(token)
        self._held += self._fresh()
        return self._release() if armed else self._drain()

    def flush(self) -> str:
        """Return what is still held back: there will be no more tokens."""
        self._held += self._fresh(last=True)
        released = self._release()
        return released if self.stopped else released + self._drain()

    def _fresh(self, *, last: bool = False) -> str:
        before = self._decode(self._window[: self._shown])
        now = self._decode(self._window)
        if len(now) <= len(before) or (now.endswith(BROKEN) and not last):
            return ""
        self._window, self._shown = self._window[self._shown :], len(self._window) - self._shown
        return now[len(before) :]

    def _release(self) -> str:
        found = ((self._held.find(stop), stop) for stop in self._stop)
        first = min((one for one in found if one[0] >= 0), default=None)
        cut, self.ended_by = (len(self._held) - self._overlap(), None) if first is None else first
        released, self._held = self._held[:cut], "" if self.stopped else self._held[cut:]
        return released

    def _overlap(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0

    def _drain(self) -> str:
        drained, self._held = self._held, ""
        return drained
