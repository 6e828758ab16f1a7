"""A language model at work: from what is asked, in whatever API, to an answer in one piece or as events.

A chat is written out by the tokenizer's own chat template. A tokenizer without one gets the contents of the messages
joined by newlines: right for a model that was never taught turns.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import HTTPException, Request, Response
from jinja2 import TemplateError
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from lissom.engine import Sampling
from lissom.errors import DataError
from lissom.models.template import within
from lissom.server.failures import say, unknown_model
from lissom.server.keys import Caller
from lissom.server.line import Line
from lissom.server.metrics import Metrics
from lissom.server.service import Limits
from lissom.server.wire import MAX_CHOICES
from lissom.server.worker import Job, Piece, Worker

if TYPE_CHECKING:
    from lissom.server.witness import Witness

CLIENT_GONE = 499
TEMPLATE_SECONDS = 2.0
TEMPLATES = {"messages"}  # what every template is told

Prompts = Sequence[Sequence[int]]
Turn = Mapping[str, Any]  # "role" and "content", as chat templates know them


class Answer(Protocol):
    """One answer in the making, in the words of an API: `chunks` writes a piece down as it comes, `complete` all."""

    ping: str

    def take(self, piece: Piece) -> None:
        """Remember a piece."""

    def complete(self) -> dict[str, Any]:
        """The whole answer."""
        ...

    def openings(self) -> Iterator[str]:
        """The events before any text."""
        ...

    def chunks(self, piece: Piece) -> Iterator[str]:
        """The events of one piece, which has been taken."""
        ...

    def closing(self) -> Iterator[str]:
        """The events after all text."""
        ...

    def failure(self, status: int, message: str) -> str:
        """The event that tells of a failure, after the status has been sent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a language model is asked for: `each` continuations of every prompt, of which there are `prompts`.

    `encode` makes their tokens, and `write` the answer to be filled, from how many continuations there are and those
    tokens. Of two that wait the lower `priority` comes first; `timeout` is in seconds, until the first token.
    """

    encode: Callable[[], list[list[int]]]
    sampling: Sampling
    write: Callable[[int, Prompts], Answer]
    prompts: int = 1
    each: int = 1
    stream: bool = False
    priority: int = 0
    timeout: float = inf


class Language:
    """A language model, its worker, and the way from a request to an answer."""

    def __init__(
        self, name: str, tokenizer: Any, line: Line, limits: Limits, metrics: Metrics, *, max_batch: int
    ) -> None:
        self.name, self.tokenizer, self.line = name, tokenizer, line
        self.worker = Worker(line, limits, max_batch=max_batch)
        self.witness: Witness | None = None
        self._metrics = metrics
        self._created = int(time.time())

    async def start(self) -> None:
        """Begin to work."""
        await self.line.start(self.worker)

    async def stop(self) -> None:
        """Stop now."""
        await self.line.stop()

    async def try_out(self) -> None:
        """See that it answers.

        Raises:
            HTTPException: it does not.
        """
        job = await self.worker.submit([[0]], [Sampling(temperature=0, max_tokens=1)])
        try:
            async for _ in job.pieces():
                pass
        finally:
            job.close()

    @property
    def asked(self) -> bool:
        """Whether anybody waits for an answer."""
        return self.worker.taken > 0

    def card(self) -> dict[str, Any]:
        """What /v1/models says of it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "lissom",
            "max_model_len": self.worker.context,
            "evidence": self.worker.evidence,
            **({} if self.witness is None else {"shadow": self.witness.told()}),
        }

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text, with those that a text begins and ends with unless told otherwise."""
        return list(self.tokenizer.encode(text, add_special_tokens=special))

    def encode_chat(
        self,
        turns: Sequence[Turn],
        *,
        answered: bool = True,
        continued: bool = False,
        told: Mapping[str, Any] = MappingProxyType({}),
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[int]:
        """The tokens of a chat, up to where the answer begins if it is to be `answered`.

        Where it is `continued` the answer goes on in the last turn. The template is `told` variables of its own, and
        the `tools` that may be called.

        Raises:
            DataError: the model's template refuses the turns, or is told what it is not for.
        """
        tokenizer = self.tokenizer
        if told and not tokenizer.chat_template:
            raise DataError("chat_template_kwargs: the model has no chat template that could be told; leave it out")
        if not tokenizer.chat_template:
            return self.encode("\n".join(turn["content"] for turn in turns))
        taken = sorted(told.keys() & (signature(tokenizer.apply_chat_template).parameters.keys() | TEMPLATES))
        if taken:
            raise DataError(f"chat_template_kwargs: {taken[0]!r} is not for the template alone; leave it out")
        how = {"add_generation_prompt": answered and not continued, "continue_final_message": continued}
        try:
            said, offered = [dict(turn) for turn in turns], list(tools) or None
            with within(TEMPLATE_SECONDS):
                return list(tokenizer.apply_chat_template(said, offered, return_dict=False, **how, **told))
        except (TemplateError, ValueError, TypeError) as error:
            raise DataError(f"messages: the chat template of the model refuses them: {error}") from error

    def decode(self, tokens: Sequence[int], *, special: bool = True) -> str:
        """The text of tokens, special ones among them unless told otherwise.

        Raises:
            DataError: one of them is none of the model's.
        """
        words = self.worker.vocabulary
        wrong = next((token for token in tokens if token >= words), None)
        if wrong is not None:
            raise DataError(f"tokens: {wrong} is none of the model's; possible are 0 to {words - 1}")
        how = {"skip_special_tokens": not special, "clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(list(tokens), **how))

    def spell(self, token: int) -> str:
        """A token as text."""
        return str(self.tokenizer.decode([token], clean_up_tokenization_spaces=False))

    async def disagreement(self, other: "Language", prompt: Sequence[int], said: Sequence[int]) -> float:
        """The share of the tokens said behind a prompt in whose place the other finds another token the likeliest.

        Both read prompt and tokens, so that it does not matter how these were chosen.

        Raises:
            DataError: behind the prompt there is no room to read anything.
            HTTPException: one of them has no room, or is in trouble.
        """
        if not said or len(prompt) >= min(self.worker.context, other.worker.context) - 1:
            raise DataError("there is nothing that could be compared")
        ours, theirs = await asyncio.gather(self._expected(prompt, said), other._expected(prompt, said))
        pairs = list(zip(ours, theirs, strict=False))  # one may have the longer context
        return sum(a != b for a, b in pairs) / len(pairs)

    async def _expected(self, prompt: Sequence[int], said: Sequence[int]) -> list[int]:
        """The likeliest tokens in the places of those said behind a prompt, as far as one more has room behind them."""
        tokens = [*prompt, *said][: self.worker.context - 1]
        with self.worker.reserve(1):
            job = await self.worker.submit([tokens], [Sampling(temperature=0, max_tokens=1, prompt_logprobs=1)])
        try:
            read = [choice async for piece in job.pieces() if piece is not None for choice in piece.read]
        finally:
            job.close()
        return [choice.top[0][0] for choice in read[len(prompt) - 1 :]]

    async def answer(self, request: Request, ask: Ask) -> Response:
        """Do what is asked.

        Raises:
            DataError: more is asked for than is possible.
            HTTPException: the engine has no room, or is in trouble.
        """
        arrived, count = time.monotonic(), ask.prompts * ask.each
        if count > MAX_CHOICES:
            raise DataError(
                f"n: {ask.prompts} prompts times n={ask.each} is more than {MAX_CHOICES} choices; ask for fewer"
            )

        caller: Caller = request.scope["caller"]
        with self.worker.reserve(count, caller.name):
            prompts = await asyncio.to_thread(ask.encode)
        job = await self.worker.submit(
            prompts,
            [nth(ask.sampling, copy) for copy in range(ask.each)],
            owner=caller.name,
            priority=caller.priority + max(ask.priority, 0),  # nobody makes himself more urgent than his key does
            until=arrived + ask.timeout,
        )
        figures = request.scope["figures"]
        figures |= {"model": self.name, "prompt_tokens": sum(map(len, prompts)), "generated_tokens": 0}
        caller.spend(figures["prompt_tokens"])

        def spend(tokens: int) -> None:
            caller.spend(tokens)
            figures["generated_tokens"] += tokens

        job.spend = spend
        self._metrics.prompt_tokens.add(self.name, amount=sum(map(len, prompts)))
        answer = ask.write(count, prompts)
        if ask.stream:
            return EventStream(self._stream(job, answer, prompts, arrived), job)
        return await while_connected(request, self._collect(job, answer, prompts, arrived), job)

    async def _collect(self, job: Job, answer: Answer, prompts: Prompts, arrived: float) -> Response:
        async for piece in self._seen(job, prompts, arrived):
            if piece is not None:
                answer.take(piece)
        return say(200, answer.complete())

    async def _stream(self, job: Job, answer: Answer, prompts: Prompts, arrived: float) -> AsyncIterator[str]:
        for opening in answer.openings():
            yield opening
        try:
            async for piece in self._seen(job, prompts, arrived):
                if piece is None:
                    yield answer.ping
                    continue
                answer.take(piece)
                for chunk in answer.chunks(piece):
                    yield chunk
        except HTTPException as error:  # the status has been sent, so the failure travels as an event
            yield answer.failure(error.status_code, error.detail)
            return
        for chunk in answer.closing():
            yield chunk

    async def _seen(self, job: Job, prompts: Prompts, arrived: float) -> AsyncIterator[Piece | None]:
        """The pieces of a job; when all have come, one of its sequences is shown to the witness."""
        shown, said = random.randrange(job.size), list[int]()
        async for piece in self._timed(job, arrived):
            if piece is not None and piece.index == shown:
                said += piece.tokens
            yield piece
        if self.witness is not None:
            prompt = prompts[shown * len(prompts) // job.size]
            self.witness.see(partial(self.disagreement, self.witness.other, prompt, said))  # type: ignore[arg-type]

    async def _timed(self, job: Job, arrived: float) -> AsyncIterator[Piece | None]:
        last: dict[int, float] = {}
        async for piece in job.pieces():
            if piece is not None:
                job.spend(len(piece.tokens))
                now = time.monotonic()
                if piece.index in last:
                    for _ in piece.tokens:  # those of one pass have shared its time
                        self._metrics.next_token.observe((now - last[piece.index]) / len(piece.tokens), self.name)
                elif piece.tokens:
                    self._metrics.first_token.observe(now - arrived, self.name)
                last[piece.index] = now
                self._metrics.generated_tokens.add(self.name, amount=len(piece.tokens))
                if piece.finish is not None:
                    self._metrics.finished.add(self.name, piece.finish)
                    self._metrics.last_token.observe(now - arrived, self.name)
            yield piece


Languages = Mapping[str, Language]


def served(languages: Languages, name: str) -> Language:
    """The language model of that name.

    Raises:
        HTTPException: there is none.
    """
    if name not in languages:
        raise unknown_model(name, sorted(languages))
    return languages[name]


class EventStream(StreamingResponse):
    """Server-sent events of a job, which is closed when they end: also when the client has gone before the first."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], job: Job) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client goes."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.close()


def nth(sampling: Sampling, copy: int) -> Sampling:
    """The sampling of copy `copy` of n: a seed gives n different answers, the same n each time."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + copy)


async def while_connected(request: Request, work: Coroutine[Any, Any, Response], job: Job) -> Response:
    """Do the work unless the client goes first; close the job either way."""

    async def gone() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.1)

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else Response(status_code=CLIENT_GONE)
    finally:
        for task in tasks:
            task.cancel()
        job.close()
