"""The OpenAI API for language models: models, completions, chat completions.

A chat is written out by the tokenizer's own chat template. A tokenizer without one gets the contents of the messages
joined by newlines: right for a model that was never taught turns.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from jinja2 import TemplateError
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from lissom.engine import Grammar, Sampling
from lissom.engine import Sequence as EngineSequence
from lissom.errors import DataError
from lissom.server.answers import PING, Answer, Chat, Completion, Shape, event
from lissom.server.failures import openai_error, say, unknown_model
from lissom.server.metrics import Metrics
from lissom.server.service import LanguageService
from lissom.server.wire import MAX_CHOICES, ChatRequest, CompletionRequest, Generation
from lissom.server.worker import Job, Piece, Worker

COMPLETION_TOKENS = 16  # the API's own default for completions; a chat goes on to the end of the context
CLIENT_GONE = 499

Encode = Callable[[], list[list[int]]]


class Language:
    """A language model at work: its service, its worker, and the way from a request to an answer."""

    def __init__(self, service: LanguageService, worker: Worker, metrics: Metrics) -> None:
        self.service = service
        self.worker = worker
        self._metrics = metrics
        self._created = int(time.time())

    def card(self) -> dict[str, Any]:
        """What /v1/models says of it."""
        return {
            "id": self.service.name,
            "object": "model",
            "created": self._created,
            "owned_by": "lissom",
            "max_model_len": self.worker.engine.context,
            "evidence": self.service.evidence,
        }

    async def complete(self, request: Request, asked: CompletionRequest) -> Response:
        """Answer POST /v1/completions."""
        texts, tokens = _prompts(asked.prompt)
        sampling = _sampling(asked, asked.max_tokens or COMPLETION_TOKENS, asked.logprobs)

        def encode() -> list[list[int]]:
            return tokens or [list(self.service.tokenizer.encode(text)) for text in texts]

        return await self._answer(request, asked, Completion(), sampling, len(texts) + len(tokens), encode)

    async def chat(self, request: Request, asked: ChatRequest) -> Response:
        """Answer POST /v1/chat/completions."""
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        sampling = _sampling(asked, asked.max_completion_tokens or asked.max_tokens, logprobs)
        return await self._answer(request, asked, Chat(), sampling, 1, lambda: [self._encode_chat(asked)])

    def _encode_chat(self, asked: ChatRequest) -> list[int]:
        tokenizer = self.service.tokenizer
        if not tokenizer.chat_template:
            return list(tokenizer.encode("\n".join(message.text for message in asked.messages)))
        messages = [{"role": message.role, "content": message.text} for message in asked.messages]
        try:
            return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        except TemplateError as error:
            raise DataError(f"messages: the chat template of the model refuses them: {error}") from error

    async def _answer(
        self, request: Request, asked: Generation, shape: Shape, sampling: Sampling, prompts: int, encode: Encode
    ) -> Response:
        arrived, each = time.monotonic(), asked.n or 1
        if prompts * each > MAX_CHOICES:
            raise DataError(f"n: {prompts} prompts times n={each} is more than {MAX_CHOICES} choices; ask for fewer")

        def prepare() -> list[EngineSequence]:
            copies = [_nth(sampling, copy) for copy in range(each)]
            return [self.worker.engine.prepare(prompt, one) for prompt in encode() for one in copies]

        with self.worker.reserve(prompts * each):
            sequences = await asyncio.to_thread(prepare)
        answer = Answer(
            shape=shape,
            model=self.service.name,
            count=len(sequences),
            prompt_tokens=sum(len(one.prompt) for one in sequences[::each]),
            with_usage=bool(asked.stream_options and asked.stream_options.include_usage),
            with_logprobs=sampling.logprobs is not None,
            spell=self._spell,
        )
        self._metrics.prompt_tokens.add(self.service.name, amount=answer.prompt_tokens)
        job = self.worker.submit(sequences)
        if asked.stream:
            return EventStream(self._stream(job, answer, arrived), job)
        return await _while_connected(request, self._collect(job, answer, arrived), job)

    async def _collect(self, job: Job, answer: Answer, arrived: float) -> Response:
        async for piece in self._timed(job, arrived):
            if piece is not None:
                answer.take(piece)
        return say(200, answer.complete())

    async def _stream(self, job: Job, answer: Answer, arrived: float) -> AsyncIterator[str]:
        for opening in answer.openings():
            yield opening
        try:
            async for piece in self._timed(job, arrived):
                if piece is None:
                    yield PING
                    continue
                answer.take(piece)
                for chunk in answer.chunks(piece):
                    yield chunk
        except HTTPException as error:  # the status has been sent, so the failure travels as an event
            yield event(openai_error(error.status_code, error.detail))
            return
        for chunk in answer.closing():
            yield chunk

    async def _timed(self, job: Job, arrived: float) -> AsyncIterator[Piece | None]:
        last: dict[int, float] = {}
        async for piece in job.pieces():
            if piece is not None:
                now = time.monotonic()
                if piece.index in last:
                    for _ in range(piece.tokens):  # those of one pass have shared its time
                        self._metrics.next_token.observe((now - last[piece.index]) / piece.tokens, self.service.name)
                else:
                    self._metrics.first_token.observe(now - arrived, self.service.name)
                last[piece.index] = now
                self._metrics.generated_tokens.add(self.service.name, amount=piece.tokens)
            yield piece

    def _spell(self, token: int) -> str:
        return str(self.service.tokenizer.decode([token], clean_up_tokenization_spaces=False))


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


def routes(languages: Mapping[str, Language]) -> APIRouter:
    """The routes under /v1."""
    router = APIRouter(prefix="/v1")

    def language(name: str) -> Language:
        if name not in languages:
            raise unknown_model(name, sorted(languages))
        return languages[name]

    @router.get("/models")
    async def models() -> Response:
        return say(200, {"object": "list", "data": [one.card() for one in languages.values()]})

    @router.get("/models/{name:path}")
    async def model(name: str) -> Response:
        return say(200, language(name).card())

    @router.post("/completions")
    async def completions(request: Request, asked: CompletionRequest) -> Response:
        return await language(asked.model).complete(request, asked)

    @router.post("/chat/completions")
    async def chat(request: Request, asked: ChatRequest) -> Response:
        return await language(asked.model).chat(request, asked)

    return router


def _sampling(asked: Generation, max_tokens: int | None, logprobs: int | None) -> Sampling:
    """Temperature and top_p are 1 unless given: the model's own distribution, whatever its generation config says."""
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    return Sampling(
        temperature=1.0 if asked.temperature is None else float(asked.temperature),
        top_p=1.0 if asked.top_p is None else float(asked.top_p),
        top_k=max(asked.top_k or 0, 0),
        min_p=float(asked.min_p or 0),
        repetition_penalty=1.0 if asked.repetition_penalty is None else float(asked.repetition_penalty),
        presence_penalty=float(asked.presence_penalty or 0),
        frequency_penalty=float(asked.frequency_penalty or 0),
        logit_bias={int(token): float(bias) for token, bias in (asked.logit_bias or {}).items()},
        seed=None if asked.seed is None else asked.seed % 2**64,
        max_tokens=max_tokens,
        min_tokens=asked.min_tokens,
        stop=tuple(stop),
        stop_tokens=tuple(asked.stop_token_ids or ()),
        ignore_eos=asked.ignore_eos,
        grammar=_grammar(asked),
        logprobs=logprobs,
    )


def _grammar(asked: Generation) -> Grammar | None:
    """What the text must be, if anything was asked for."""
    parts = [part for part in (asked.response_format, asked.structured_outputs) if part is not None]
    wanted = [item for part in parts for item in part.grammars.items()]
    if len(wanted) > 1:
        raise DataError("response_format and structured_outputs: both say what the text must be; give one")
    if not wanted:
        return None
    kind, value = wanted[0]
    return Grammar(kind=kind, text=value if isinstance(value, str) else json.dumps(value))


def _nth(sampling: Sampling, copy: int) -> Sampling:
    """The sampling of copy `copy` of n: a seed gives n different answers, the same n each time."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + copy)


def _prompts(prompt: str | Sequence[Any]) -> tuple[list[str], list[list[int]]]:
    """The prompts as texts or as tokens; one of the two lists is empty."""
    if isinstance(prompt, str):
        return [prompt], []
    if isinstance(prompt[0], str):
        return list(prompt), []
    return [], [list(prompt)] if isinstance(prompt[0], int) else [list(one) for one in prompt]


async def _while_connected(request: Request, work: Coroutine[Any, Any, Response], job: Job) -> Response:
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
