"""The Messages API of Anthropic: messages, and how many tokens they have.

A chat that ends with the assistant's turn is continued there. What the API knows and no model here does, such as
thinking, is refused by name.
"""

import asyncio
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from lissom.engine import Grammar, Sampling
from lissom.errors import DataError
from lissom.server.answers import event
from lissom.server.calls import may_call, must_call
from lissom.server.failures import messages_error, say
from lissom.server.language import Ask, Language, Languages, served
from lissom.server.messages_wire import CountRequest, MessagesRequest, ToolChoice
from lissom.server.openai import grammar_of
from lissom.server.tools import Call, Reader, Tools, read, tools_of
from lissom.server.worker import Piece

REASONS = {"length": "max_tokens", "stop": "end_turn"}


@dataclass(slots=True, kw_only=True)
class Said:
    """A message of the assistant in the making: text, and calls if there are `tools`."""

    model: str
    prompt_tokens: int
    tools: Tools | None = None
    id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    pieces: list[Piece] = field(default_factory=list)
    reader: Reader | None = field(init=False)
    calls: int = field(default=0, init=False)
    blocks: int = field(default=0, init=False)
    speaks: bool = field(default=False, init=False)  # whether the last block is text that may go on
    ping = event({"type": "ping"}, "ping")

    def __post_init__(self) -> None:
        self.reader = None if self.tools is None else Reader(tools=self.tools)

    def take(self, piece: Piece) -> None:
        """Remember a piece."""
        self.pieces.append(piece)

    @property
    def end(self) -> dict[str, Any]:
        """Why the text ended, after so many calls."""
        last = self.pieces[-1]
        closed = self.tools is not None and last.ended_by == self.tools.dialect.closes
        if self.calls and last.finish == "stop" and (last.ended_by is None or closed):
            return {"stop_reason": "tool_use", "stop_sequence": None}
        reason = REASONS.get(str(last.finish), "end_turn") if last.ended_by is None else "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": last.ended_by}

    @property
    def written(self) -> int:
        """Tokens that were generated."""
        return sum(len(piece.tokens) for piece in self.pieces)

    def complete(self) -> dict[str, Any]:
        """The whole message."""
        text = "".join(piece.text for piece in self.pieces)
        said, calls = (text, ()) if self.tools is None else read(self.tools, text)
        self.calls = len(calls)
        spoken = [{"type": "text", "text": said}] if said or not calls else []
        return {**self.head([*spoken, *map(used, calls)], self.written), **self.end}

    def openings(self) -> Iterator[str]:
        """The message without content."""
        yield self.event("message_start", message=self.head([], 0))

    def chunks(self, piece: Piece) -> Iterator[str]:
        """Text, and calls."""
        if self.reader is None:
            parts: list[str | Call] = [piece.text] if piece.text else []
        else:
            parts = [*self.reader.push(piece.text), *(self.reader.finish() if piece.finish else ())]
        for part in parts:
            if isinstance(part, Call):
                yield from self.called(part)
                continue
            if not self.speaks:
                yield self.opened({"type": "text", "text": ""})
                self.speaks = True
            yield self.event("content_block_delta", index=self.blocks, delta={"type": "text_delta", "text": part})

    def called(self, call: Call) -> Iterator[str]:
        """A block that is a call, from its beginning to its end."""
        yield from self.closed()
        yield self.opened({**used(call), "input": {}})
        delta = {"type": "input_json_delta", "partial_json": call.arguments}
        yield self.event("content_block_delta", index=self.blocks, delta=delta)
        yield self.event("content_block_stop", index=self.blocks)
        self.blocks += 1
        self.calls += 1

    def opened(self, block: dict[str, Any]) -> str:
        """The beginning of a block."""
        return self.event("content_block_start", index=self.blocks, content_block=block)

    def closed(self) -> Iterator[str]:
        """The end of a block of text, if there is one."""
        if self.speaks:
            yield self.event("content_block_stop", index=self.blocks)
            self.blocks += 1
            self.speaks = False

    def closing(self) -> Iterator[str]:
        """The end of the last block and of the message."""
        yield from self.closed()
        yield self.event("message_delta", delta=self.end, usage={"output_tokens": self.written})
        yield self.event("message_stop")

    def failure(self, status: int, message: str) -> str:
        """The event that tells of a failure."""
        return event(messages_error(status, message), "error")

    def head(self, content: list[dict[str, Any]], written: int) -> dict[str, Any]:
        """The message with such a content, before it is known why it ends."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": self.prompt_tokens, "output_tokens": written},
        }

    def event(self, kind: str, **told: Any) -> str:
        """An event of the stream."""
        return event({"type": kind, **told}, kind)


def routes(languages: Languages) -> APIRouter:
    """The routes under /v1/messages."""
    router = APIRouter(prefix="/v1/messages")

    @router.post("")
    async def messages(request: Request, asked: MessagesRequest) -> Response:
        language = served(languages, asked.model)
        return await language.answer(request, message(language, asked))

    @router.post("/count_tokens")
    async def count_tokens(asked: CountRequest) -> Response:
        tokens = await asyncio.to_thread(encoded, served(languages, asked.model), asked)
        return say(200, {"input_tokens": len(tokens)})

    return router


def message(language: Language, asked: MessagesRequest) -> Ask:
    """What POST /v1/messages asks for.

    Raises:
        DataError: tools, of which the model knows none; or two ways to say what the text must be.
    """
    wanted = grammar_of(asked.output_config.format if asked.output_config else None)
    schemas = {tool.name: tool.input_schema for tool in asked.offered}
    strict = [tool.name for tool in asked.offered if tool.strict]
    tools = tools_of(language.tokenizer, schemas, strict) if schemas else None
    called, single = called_for(tools, asked.tool_choice)
    if called and wanted:
        raise DataError("tool_choice or strict tools and output_config: both say what the text must be; give one")
    sampling = Sampling(
        temperature=1.0 if asked.temperature is None else float(asked.temperature),
        top_p=1.0 if asked.top_p is None else float(asked.top_p),
        top_k=asked.top_k or 0,
        max_tokens=asked.max_tokens,
        stop=(*(asked.stop_sequences or ()), *(tools.single if tools and single and not called else ())),
        grammar=called or wanted,
    )
    return Ask(
        encode=lambda: [encoded(language, asked)],
        sampling=sampling,
        write=lambda _, prompts: Said(model=language.name, prompt_tokens=sum(map(len, prompts)), tools=tools),
        stream=asked.stream,
    )


def called_for(tools: Tools | None, choice: ToolChoice | None) -> tuple[Grammar | None, bool]:
    """What makes sure that tools are called, or strict ones rightly; and whether there may be a single call."""
    if tools is None:
        return None, False
    single = choice is not None and bool(choice.disable_parallel_tool_use)
    if choice is None or choice.type == "auto":
        return may_call(tools, single=single), single
    return must_call(tools, choice.name, single=single), single


def used(call: Call) -> dict[str, Any]:
    """A call as a block of a message."""
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)}


def encoded(language: Language, asked: CountRequest) -> list[int]:
    """The tokens of the prompt."""
    turns = asked.turns
    tools = [tool.shown for tool in asked.offered]
    return language.encode_chat(turns, continued=turns[-1]["role"] == "assistant", tools=tools)
