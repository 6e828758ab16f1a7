"""The one thread that owns an engine, and how the event loop talks to it.

Into the thread go functions to call, out of it come pieces of text. Nothing else is shared: a request is checked and
its sequences are made before the thread sees them.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from fastapi import HTTPException

from lissom.engine import Choice, Engine, Finish
from lissom.engine import Sequence as EngineSequence
from lissom.server.service import LanguageService, Limits

log = logging.getLogger("lissom.server")
PING_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """News of sequence `index` of a job: text that has become certain, so many tokens, and perhaps the end.

    `ended_by` is the stop string that ended it, if one did; `reused` counts the tokens of the prompt that were not read
    anew.
    """

    index: int
    text: str
    tokens: int
    choices: tuple[Choice, ...]
    finish: Finish | None
    ended_by: str | None = None
    reused: int = 0


class Job:
    """The sequences of one request. Whoever submits a job closes it, whatever happens."""

    def __init__(self, sequences: Sequence[EngineSequence], close: Callable[["Job"], None]) -> None:
        self.sequences = tuple(sequences)
        self._close = close
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[Piece | HTTPException] = asyncio.Queue()

    def tell(self, news: Piece | HTTPException) -> None:
        """Called by the worker's thread."""
        self._loop.call_soon_threadsafe(self._news.put_nowait, news)

    async def pieces(self) -> AsyncIterator[Piece | None]:
        """All pieces in order; None now and then while there is no news, so that a quiet connection can be kept up.

        Raises:
            HTTPException: the engine failed, or the server stops.
        """
        left = len(self.sequences)
        while left:
            try:
                news = await asyncio.wait_for(self._news.get(), PING_SECONDS)
            except TimeoutError:
                yield None
                continue
            if isinstance(news, HTTPException):
                raise news
            left -= news.finish is not None
            yield news

    def close(self) -> None:
        """Stop what is still running."""
        self._close(self)


@dataclass(slots=True, kw_only=True)
class _Ticket:
    """Whose a sequence is, and how many of its characters and tokens have been told; touched by the thread only."""

    job: Job
    index: int
    shown: int = 0
    told: int = 0


class Worker:
    """Runs the engine of one language model.

    Raises:
        ModelError: the engine does not know the model's family.
    """

    def __init__(self, service: LanguageService, limits: Limits) -> None:
        self.engine = Engine(
            service.model,
            service.tokenizer,
            max_tokens_in_cache=service.max_tokens_in_cache,
            max_batch=service.max_batch,
            cache=service.cache,
            draft=service.draft,
            speculate=service.speculate,
        )
        self._room = service.max_batch + limits.waiting
        self._taken = 0  # sequences submitted or about to be; touched by the event loop only
        self._limits = limits
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._tickets: dict[EngineSequence, _Ticket] = {}
        self._thread = threading.Thread(target=self._run, name=f"engine of {service.name}", daemon=True)
        self._running = False
        self._failed = False
        self._deadline: float | None = None
        self._progress = time.monotonic()

    def start(self) -> None:
        """Begin to work."""
        self._running = True
        self._thread.start()

    def drain(self) -> None:
        """Take nothing new, and give what runs a last time to finish."""
        self._deadline = time.monotonic() + self._limits.grace_seconds

    def stop(self) -> None:
        """Stop now, and wait for the thread to end."""
        self._calls.put(self._halt)
        self._thread.join()

    @property
    def trouble(self) -> str | None:
        """Why no request can be taken at the moment; None when all is well."""
        if self._failed:
            return "the engine failed; the server has to be restarted"
        if self._deadline is not None:
            return "the server is stopping"
        stalled = self._tickets and time.monotonic() - self._progress > self._limits.stall_seconds
        return "the engine makes no progress" if stalled else None

    @contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Hold room for that many sequences while they are prepared, so that a burst is refused before it costs.

        Raises:
            HTTPException: 429 when the queue is full, 503 when the engine is in trouble.
        """
        if self.trouble:
            raise HTTPException(503, self.trouble)
        if self._taken + count > self._room:
            raise HTTPException(429, "the queue is full; try again later", headers={"Retry-After": "1"})
        self._taken += count
        try:
            yield
        finally:
            self._taken -= count

    def submit(self, sequences: Sequence[EngineSequence]) -> Job:
        """Hand sequences to the engine."""
        job = Job(sequences, self._close)
        self._taken += len(sequences)
        self._calls.put(lambda: self._begin(job))
        return job

    def _close(self, job: Job) -> None:
        self._taken -= len(job.sequences)
        self._calls.put(lambda: self._forget(job))

    # From here on, everything runs in the thread.

    def _run(self) -> None:
        try:
            while self._running:
                self._answer_calls()
                self._step()
                if self._deadline is not None and time.monotonic() > self._deadline:
                    self._give_up(HTTPException(503, "the server is stopping"))
        except Exception:  # the boundary of the thread: whatever it was, those who wait must hear of it
            log.exception("the engine failed")
            self._failed = True
            self._give_up(HTTPException(500, "the engine failed; the server's log says why"))
            while self._running:
                self._calls.get()()
                self._give_up(HTTPException(500, "the engine failed; the server's log says why"))

    def _answer_calls(self) -> None:
        """Wait for a call when there is nothing else to do; otherwise answer those that are there."""
        if not self.engine.busy:
            self._calls.get()()
            self._progress = time.monotonic()
        while True:
            try:
                call = self._calls.get_nowait()
            except Empty:
                return
            call()

    def _step(self) -> None:
        for sequence in self.engine.step():
            ticket = self._tickets[sequence]
            ticket.job.tell(_news(sequence, ticket))
            if sequence.finish is not None:
                del self._tickets[sequence]
        self._progress = time.monotonic()

    def _begin(self, job: Job) -> None:
        for index, sequence in enumerate(job.sequences):
            self._tickets[sequence] = _Ticket(job=job, index=index)
            self.engine.enqueue(sequence)

    def _forget(self, job: Job) -> None:
        for sequence in job.sequences:
            self._tickets.pop(sequence, None)
            self.engine.cancel(sequence)

    def _give_up(self, reason: HTTPException) -> None:
        for job in {ticket.job for ticket in self._tickets.values()}:
            job.tell(reason)
            self._forget(job)

    def _halt(self) -> None:
        self._running = False


def _news(sequence: EngineSequence, ticket: _Ticket) -> Piece:
    piece = Piece(
        index=ticket.index,
        text=sequence.text[ticket.shown :],
        tokens=len(sequence.generated) - ticket.told,
        choices=tuple(sequence.choices[ticket.told :]),
        finish=sequence.finish,
        ended_by=sequence.detokenizer.ended_by,
        reused=sequence.reused,
    )
    ticket.shown, ticket.told = len(sequence.text), len(sequence.generated)
    return piece
