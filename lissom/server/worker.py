"""The queue before the engine of a language model: what is asked goes out, pieces of text come back to who asked."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from math import inf
from typing import Any

from fastapi import HTTPException

from lissom.engine import Choice, Finish, Sampling
from lissom.engine.link import said_of
from lissom.errors import DataError
from lissom.server.admission import Admission
from lissom.server.line import Line
from lissom.server.service import Limits

PING_SECONDS = 15.0
LATE = "the first token did not come within the timeout; try again later, or with a longer one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """News of sequence `index` of a job: text that has become certain, tokens, and perhaps the end.

    `ended_by` is the stop string that ended it, if one did; `reused` counts the tokens of the prompt that were not read
    anew. `read` are the tokens of the prompt from the second on with their log-probabilities, where these are wanted.
    """

    index: int
    text: str
    tokens: Sequence[int]
    choices: tuple[Choice, ...]
    finish: Finish | None
    ended_by: str | None = None
    reused: int = 0
    read: tuple[Choice, ...] = ()


class Job:
    """The sequences of one request. Whoever submits a job closes it, whatever happens."""

    def __init__(self, name: int, size: int, owner: str, until: float, close: Callable[["Job"], None]) -> None:
        self.name, self.size, self.owner, self.until = name, size, owner, until
        self.spend: Callable[[int], None] = lambda _: None  # told of the tokens written
        self.accepted = asyncio.get_running_loop().create_future()
        self._close = close
        self._news: asyncio.Queue[Piece | HTTPException] = asyncio.Queue()

    def tell(self, news: Piece | HTTPException) -> None:
        """Something has come, or gone wrong."""
        if self.accepted.done():
            self._news.put_nowait(news)
        elif isinstance(news, HTTPException):
            self.accepted.set_exception(news)

    async def pieces(self) -> AsyncIterator[Piece | None]:
        """All pieces in order; None now and then while there is no news, so that a quiet connection can be kept up.

        Raises:
            HTTPException: the engine failed, the server stops, or the first piece did not come in time.
        """
        left, until = self.size, self.until
        while left:
            rest = until - time.monotonic()
            try:
                # not wait_for, which before Python 3.12 may take a piece for an answer to being cancelled
                async with asyncio.timeout(min(max(rest, 0.0), PING_SECONDS)):
                    news = await self._news.get()
            except TimeoutError:
                if rest < PING_SECONDS:
                    raise HTTPException(504, LATE) from None
                yield None
                continue
            until = inf
            if isinstance(news, HTTPException):
                raise news
            left -= news.finish is not None
            yield news

    def close(self) -> None:
        """Stop what is still running."""
        self._close(self)


class Worker:
    """The engine of a language model, and who waits for it."""

    def __init__(self, line: Line, limits: Limits, *, max_batch: int) -> None:
        self.line = line
        self.state: Mapping[str, float] = {}
        self.admission = Admission(max_batch, limits.first_token_seconds)
        self._room = max_batch + limits.waiting
        self._taken = Counter[str]()  # sequences submitted or about to be, by whose they are
        self._jobs: dict[int, Job] = {}
        self._names = count()

    @property
    def context(self) -> int:
        """Tokens of a prompt and its continuation, at most."""
        return int(self.line.greeting["context"])

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return int(self.line.greeting["vocabulary"])

    @property
    def evidence(self) -> Mapping[str, Any] | None:
        """What is proven of the model."""
        evidence: Mapping[str, Any] | None = self.line.greeting["evidence"]
        return evidence

    @property
    def busy(self) -> bool:
        """Whether anybody waits."""
        return bool(self._jobs)

    @property
    def taken(self) -> int:
        """Sequences submitted or about to be."""
        return self._taken.total()

    @contextmanager
    def reserve(self, size: int, owner: str = "") -> Iterator[None]:
        """Hold room for that many sequences while they are prepared, so that a burst is refused before it costs.

        However full it is, every owner has room for his part of what there is.

        Raises:
            HTTPException: 429 when the queue is full, 503 when the engine is in trouble.
        """
        if self.line.trouble:
            raise HTTPException(503, self.line.trouble)
        part = self._room // len({owner, *self._taken})
        if self.taken + size > self._room and self._taken[owner] + size > part:
            raise HTTPException(429, "the queue is full; try again later", headers={"Retry-After": "1"})
        self._take(owner, size)
        try:
            yield
        finally:
            self._take(owner, -size)

    async def submit(
        self,
        prompts: Sequence[Sequence[int]],
        samplings: Sequence[Sampling],
        *,
        owner: str = "",
        priority: int = 0,
        until: float = inf,
    ) -> Job:
        """Have the engine continue every prompt with every sampling: for whom, how urgently, and until when to begin.

        Raises:
            DataError: it cannot.
            HTTPException: 429 when the first token would come too late, 503 when the engine is in trouble.
        """
        new = sum(map(len, prompts))  # several continuations of a prompt read it once
        self.admission.check(new, owner, priority, until - time.monotonic())
        job = Job(next(self._names), len(prompts) * len(samplings), owner, until, self._close)
        said = {"begin": job.name, "prompts": prompts, "samplings": [said_of(one) for one in samplings]}
        self.line.send({**said, "owner": owner, "priority": priority})
        self._jobs[job.name] = job
        self._take(owner, job.size)
        for index in range(job.size):
            own = 0 if index % len(samplings) else len(prompts[index // len(samplings)])
            self.admission.enter((job.name, index), own, owner, priority)
        try:
            await job.accepted
        except BaseException:
            job.close()
            raise
        return job

    def hear(self, said: Mapping[str, Any], behind: bytes) -> None:
        """News of the engine: who is accepted, who is refused, and what has been written."""
        read = {name: said["state"][name] - self.state.get(name, 0) for name in ("read_tokens", "read_seconds")}
        self.admission.read(read["read_tokens"], read["read_seconds"])
        self.state = said["state"]
        for name in said["accepted"]:
            if (job := self._jobs.get(name)) is not None and not job.accepted.done():
                job.accepted.set_result(None)
        for name, why in said["refused"]:
            if (job := self._jobs.get(name)) is not None and not job.accepted.done():
                job.accepted.set_exception(DataError(why))
        for news in said["news"]:
            if (job := self._jobs.get(news.pop("job"))) is not None:
                sequence = job.name, news["index"]
                self.admission.begin(sequence)
                if news["finish"] is not None:
                    self.admission.end(sequence)
                choices = {kind: tuple(choice(*one) for one in news[kind]) for kind in ("choices", "read")}
                job.tell(Piece(**{**news, **choices}))

    def give_up(self, reason: HTTPException) -> None:
        """Tell all who wait, for whom nothing will come."""
        self.state = {}
        for job in tuple(self._jobs.values()):
            job.tell(reason)
            job.close()

    def _take(self, owner: str, size: int) -> None:
        self._taken[owner] += size
        if not self._taken[owner]:
            del self._taken[owner]

    def _close(self, job: Job) -> None:
        if self._jobs.pop(job.name, None) is None:
            return
        self._take(job.owner, -job.size)
        for index in range(job.size):
            self.admission.leave((job.name, index))
        if not self.line.ended:
            self.line.send({"forget": job.name})


def choice(token: int, logprob: float, top: Sequence[Sequence[Any]]) -> Choice:
    """A choice as the engine said it."""
    return Choice(token=token, logprob=logprob, top=tuple((other, its) for other, its in top))
