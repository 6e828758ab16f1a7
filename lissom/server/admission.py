"""How long a request would wait for its first token, by what the server has measured of itself; too long is refused.

A first token comes when a place among the sequences that run is free, and when every prompt ahead has been read:

    wait = (sequences ahead that find no place, and one) · (seconds of a sequence) / (places)
         + (tokens of prompts ahead, and its own) / (tokens read in a second)

Ahead are those that wait at the same priority or a lower one; but of another owner no more sequences, and no more
tokens, than the owner himself then has waiting, since the engine lets owners take turns (engine/fairness.py).

Both rates are measured as the server runs, the latest counting most; until something has been measured nothing is
refused on their account. A sequence that has begun lately may still run for as long as one takes: the wait is what is
to be expected. By how much first tokens came later than that is measured too: so much sooner must one be expected that
is taken, so that by what was seen lately all but one in a hundred come in time. Until enough have come it is a fifth of
what is promised, at least: the first queue would be late as a whole, before anything is known of it.
"""

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import HTTPException

KEPT = 0.9  # of what was known stays when something new is measured
LATEST, SURE = 256, 0.99  # first tokens that tell how late others come, and the share of them that keeps the promise
FIRST_SLACK, MOST_SLACK = 0.2, 0.5  # of the promise; more would take too few for how late they come to be seen anew


@dataclass(slots=True, kw_only=True)
class Rate:
    """Something done in some time, the latest counting most."""

    done: float = 0.0
    seconds: float = 0.0

    def see(self, done: float, seconds: float) -> None:
        """So much more was done, in so many seconds."""
        self.done, self.seconds = KEPT * self.done + done, KEPT * self.seconds + seconds

    def time(self, amount: float) -> float:
        """Seconds that this much takes; 0 where nothing is known."""
        return amount * self.seconds / self.done if self.done else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A sequence whose first token has not come."""

    tokens: int
    owner: str
    priority: int
    expected: float  # when its first token is to come; never where nothing is known


class Admission:
    """Keeps account of who waits and of how fast they are served, for one engine with so many places."""

    def __init__(self, places: int, promise: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._places, self._promise, self._clock = places, promise, clock
        self._reading = Rate()  # tokens of prompts
        self._serving = Rate()  # sequences
        self._unread: dict[object, Waiting] = {}  # those whose first token has not come
        self._begun: dict[object, float] = {}  # when the first token of those came that have not ended
        self._late = deque[float](maxlen=LATEST)  # seconds by which first tokens came later than expected

    def wait(self, tokens: int, owner: str = "", priority: int = 0) -> float:
        """Seconds until the first token of a sequence with a prompt of so many tokens, if it came now."""
        ahead = defaultdict[str, list[int]](list)
        for one in self._unread.values():
            if one.priority <= priority:
                ahead[one.owner].append(one.tokens)
        own = ahead.pop(owner, [])
        number, read = len(own) + 1, sum(own) + tokens
        number += sum(min(len(others), len(own) + 1) for others in ahead.values())
        read += sum(min(sum(others), sum(own) + tokens) for others in ahead.values())
        turns = self._serving.time(max(number + len(self._begun) - self._places, 0)) / self._places
        return turns + self._reading.time(read)

    def slack(self) -> float:
        """Seconds by which one may come later than expected."""
        late = sorted(self._late)[math.ceil(SURE * len(self._late)) - 1] if self._late else 0.0
        least = FIRST_SLACK * self._promise if len(self._late) < LATEST else 0.0
        return min(max(late, least), MOST_SLACK * self._promise)

    def check(self, tokens: int, owner: str = "", priority: int = 0, timeout: float = math.inf) -> None:
        """See that a first token can come in the time that is promised, and in that which the client has.

        One that nobody is ahead of may take longer.

        Raises:
            HTTPException: 429, and when to try again.
        """
        late = self.wait(tokens, owner, priority) - min(self._promise - self.slack(), timeout)
        if late > 0 and (self._unread or self._begun):
            again = {"Retry-After": str(math.ceil(late))}
            raise HTTPException(429, f"too many tokens wait; try again in {again['Retry-After']} seconds", again)

    def enter(self, sequence: object, tokens: int, owner: str = "", priority: int = 0) -> None:
        """A sequence has been handed to the engine."""
        known = self._reading.done and self._serving.done
        expected = self._clock() + self.wait(tokens, owner, priority) if known else math.inf
        self._unread[sequence] = Waiting(tokens=tokens, owner=owner, priority=priority, expected=expected)

    def begin(self, sequence: object) -> None:
        """Its first token has come."""
        if (one := self._unread.pop(sequence, None)) is not None:
            self._begun[sequence] = now = self._clock()
            if one.expected < math.inf:
                self._late.append(now - one.expected)

    def end(self, sequence: object) -> None:
        """It has ended by itself."""
        if (begun := self._begun.pop(sequence, None)) is not None:
            self._serving.see(1, self._clock() - begun)

    def leave(self, sequence: object) -> None:
        """It is no longer wanted."""
        self._unread.pop(sequence, None)
        self._begun.pop(sequence, None)

    def read(self, tokens: float, seconds: float) -> None:
        """The engine has read so many tokens of prompts in so many seconds."""
        if tokens > 0:
            self._reading.see(tokens, seconds)
