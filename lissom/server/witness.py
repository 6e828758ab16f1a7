"""A witness: another model, as a rule the original, that sees a share of the traffic, and where it would part from it.

What is compared is a number from 0 (the two agree) to 1 for each request. Their mean is tested against the owner's
budget by betting (estimate/betting.py), which is valid whenever one looks. Since traffic changes, the test begins anew
after WINDOW requests: of models that keep the budget, at most 1 - confidence of the windows end in an alarm. Requests
are independent of one another as far as those who send them are.

Nobody waits for a witness: it is asked after the answer has been given, one request at a time, and what it has no time
for is skipped and counted.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException

from lissom.errors import DataError
from lissom.estimate import Certifier
from lissom.server.service import Shadow

if TYPE_CHECKING:
    from lissom.server.models import Model

log = logging.getLogger("lissom.server")

WINDOW = 2_000
WAITING = 16

Comparison = Callable[[], Awaitable[float]]


class Witness:
    """The other model, and how far it disagrees; when that is too far, `roll_back` says whether it takes over."""

    def __init__(self, other: "Model", shadow: Shadow, roll_back: Callable[[], bool]) -> None:
        self.other = other
        self.compared = self.skipped = 0
        self.alarm = self.rolled_back = False
        self._shadow, self._roll_back = shadow, roll_back
        self._test = Certifier(shadow.budget)
        self._looked = 0  # requests in the test
        self._queue: asyncio.Queue[Comparison] = asyncio.Queue(WAITING)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to work."""
        await self.other.start()
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Stop now; one that has taken the other's place goes on as the model that is served."""
        if self._task is not None and not self.rolled_back:
            self._task.cancel()
        if not self.rolled_back:
            await self.other.stop()

    def see(self, compare: Comparison) -> None:
        """A request has been answered: the share of them that chance chooses is compared."""
        if self.rolled_back or random.random() >= self._shadow.share:
            return
        try:
            self._queue.put_nowait(compare)
        except asyncio.QueueFull:
            self.skipped += 1

    def told(self) -> dict[str, Any]:
        """What it has seen: the disagreement of the present window with both ends of its interval, and the verdict."""
        budget = self._shadow.budget
        seen = None
        if self._looked:
            drop = self._test.drop
            seen = {"value": drop.value, "low": drop.low, "high": drop.high, "requests": drop.n}
        return {
            "share": self._shadow.share,
            "compared": self.compared,
            "skipped": self.skipped,
            "disagreement": seen,
            "max_disagreement": budget.max_drop,
            "confidence": budget.confidence,
            "verdict": self._test.verdict,
            "alarm": self.alarm,
            "rolled_back": self.rolled_back,
        }

    async def _work(self) -> None:
        while not self.rolled_back:
            compare = await self._queue.get()
            try:
                self._take(await compare())
            except (HTTPException, DataError):  # one of the two has no room for it, or is not there
                self.skipped += 1
            except Exception:  # the boundary of the task: the next ones must be compared all the same
                log.exception("a request could not be compared with the shadow")
                self.skipped += 1

    def _take(self, disagreement: float) -> None:
        """One more comparison; whatever follows from it."""
        if self._looked == WINDOW:
            self._test, self._looked = Certifier(self._shadow.budget), 0
        self._test.add([1.0], [1.0 - disagreement])
        self.compared += 1
        self._looked += 1
        if self._test.verdict == "PASS":
            self.alarm = False
        elif self._test.verdict == "FAIL" and not self.alarm:
            self.alarm = True
            log.error("%s disagrees with its shadow: %s", self.other.name, self._test.certificate)
            if self._shadow.rollback and self._roll_back():
                self.rolled_back = True
                log.error("%s is answered by its shadow from now on", self.other.name)
