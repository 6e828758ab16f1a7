"""The Messages API of Anthropic: messages, and how many tokens they have.

A chat that ends with the assistant's turn is continued there. What the API knows and no model here does, such as tools
or thinking, is refused by name.
"""

import asyncio
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from lissom.engine import Sampling
from lissom.server.answers import event
from lissom.server.failures import messages_error, say
from lissom.server.language import Ask, Language, Languages, served
from lissom.server.openai import grammar_of
from lissom.server.wire import MAX_LISTED, MAX_STOPS, Format, Name, NoTools, Stop, Text, Wire, turn
from lissom.server.worker import Piece

REASONS = {"length": "max_tokens", "stop": "end_turn"}


class CacheControl(Wire):
    """A mark where a prompt is to be kept: all of every prompt is, as long as there is room."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Block(Wire):
    """A part of a message of /v1/messages; only text is understood."""

    type: Literal["text"]
    text: Text
    cache_control: CacheControl | None = None


class Speech(Wire):
    """One turn of /v1/messages."""

    role: Literal["user", "assistant"]
    content: Text | list[Block]


class MessageMetadata(Wire):
    """Who asks, which changes nothing."""

    user_id: Name | None = None


class NoThinking(Wire):
    """Thinking in secret, which no model does here."""

    type: Literal["disabled"]


class NoTool(Wire):
    """How tools are chosen, of which there are none."""

    type: Literal["auto", "none"]
    disable_parallel_tool_use: bool | None = None


class CountRequest(Wire):
    """POST /v1/messages/count_tokens."""

    model: Name
    messages: Annotated[list[Speech], Field(min_length=1, max_length=MAX_LISTED)]
    system: Text | list[Block] | None = None
    tools: NoTools | None = None
    tool_choice: NoTool | None = None
    thinking: NoThinking | None = None

    @property
    def turns(self) -> list[dict[str, Any]]:
        """As chat templates know them."""
        spoken = [turn(one.role, one.content) for one in self.messages]
        return spoken if self.system is None else [turn("system", self.system), *spoken]


class TextSchema(Format):
    """JSON that keeps a schema."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]

    @property
    def grammars(self) -> dict[str, Any]:
        """What the text must be, by the kind of grammar that says so."""
        return {"json": self.schema_}


class OutputConfig(Wire):
    """What the text must be."""

    format: TextSchema | None = None


class MessagesRequest(CountRequest):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool = False
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    output_config: OutputConfig | None = None
    metadata: MessageMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None


@dataclass(slots=True, kw_only=True)
class Said:
    """A message of the assistant in the making."""

    model: str
    prompt_tokens: int
    id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    pieces: list[Piece] = field(default_factory=list)
    ping = event({"type": "ping"}, "ping")

    def take(self, piece: Piece) -> None:
        """Remember a piece."""
        self.pieces.append(piece)

    @property
    def end(self) -> dict[str, Any]:
        """Why the text ended."""
        last = self.pieces[-1]
        reason = REASONS.get(str(last.finish), "end_turn") if last.ended_by is None else "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": last.ended_by}

    @property
    def written(self) -> int:
        """Tokens that were generated."""
        return sum(piece.tokens for piece in self.pieces)

    def complete(self) -> dict[str, Any]:
        """The whole message."""
        text = "".join(piece.text for piece in self.pieces)
        return {**self.head([{"type": "text", "text": text}], self.written), **self.end}

    def openings(self) -> Iterator[str]:
        """The message without content, and the beginning of its one part."""
        yield self.event("message_start", message=self.head([], 0))
        yield self.event("content_block_start", index=0, content_block={"type": "text", "text": ""})

    def chunks(self, piece: Piece) -> Iterator[str]:
        """Text."""
        if piece.text:
            yield self.event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece.text})

    def closing(self) -> Iterator[str]:
        """The end of the part and of the message."""
        yield self.event("content_block_stop", index=0)
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
    """What POST /v1/messages asks for."""
    sampling = Sampling(
        temperature=1.0 if asked.temperature is None else float(asked.temperature),
        top_p=1.0 if asked.top_p is None else float(asked.top_p),
        top_k=asked.top_k or 0,
        max_tokens=asked.max_tokens,
        stop=tuple(asked.stop_sequences or ()),
        grammar=grammar_of(asked.output_config.format if asked.output_config else None),
    )
    return Ask(
        encode=lambda: [encoded(language, asked)],
        sampling=sampling,
        write=lambda count, read: Said(model=language.service.name, prompt_tokens=read),
        stream=asked.stream,
    )


def encoded(language: Language, asked: CountRequest) -> list[int]:
    """The tokens of the prompt."""
    turns = asked.turns
    return language.encode_chat(turns, continued=turns[-1]["role"] == "assistant")
