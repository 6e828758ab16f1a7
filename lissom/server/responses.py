"""The Responses API of OpenAI, without memory: what was said before is given again, and nothing is stored.

What the API knows and no model here does, such as tools, is refused by name.
"""

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from lissom.engine import Sampling
from lissom.server.answers import PING, event
from lissom.server.failures import openai_error
from lissom.server.language import Ask, Language, Languages, served
from lissom.server.openai import grammar_of
from lissom.server.wire import MAX_LISTED, Format, JsonSchema, Name, NoTools, PlainFormat, Text, Wire, turn
from lissom.server.worker import Piece

PLACE = {"output_index": 0, "content_index": 0}  # of the one text of the one message


class NamedSchema(JsonSchema, Format):
    """JSON that keeps a schema, as /v1/responses writes it."""

    type: Literal["json_schema"]

    @property
    def grammars(self) -> dict[str, Any]:
        """What the text must be, by the kind of grammar that says so."""
        return {"json": self.schema_}


class ResponseText(Wire):
    """A part of a message of /v1/responses, as it is given or as it was answered; only text is understood."""

    type: Literal["input_text", "output_text"]
    text: Text
    annotations: NoTools | None = None
    logprobs: NoTools | None = None


class ResponseInput(Wire):
    """One turn of /v1/responses; `id` and `status` are those of an answer that is given back."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[ResponseText]
    id: Name | None = None
    status: Name | None = None
    phase: None = None

    @property
    def turn(self) -> dict[str, Any]:
        """As chat templates know it."""
        return turn(self.role, self.content)


class ResponseFormat(Wire):
    """What the text must be."""

    format: Annotated[PlainFormat | NamedSchema, Field(discriminator="type")] | None = None


class ResponsesRequest(Wire):
    """POST /v1/responses; nothing is stored, so nothing can be referred to."""

    model: Name
    input: Text | Annotated[list[ResponseInput], Field(min_length=1, max_length=MAX_LISTED)]
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    text: ResponseFormat | None = None
    store: Literal[False] | None = None
    background: Literal[False] | None = None
    previous_response_id: None = None
    include: NoTools | None = None
    tools: NoTools | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    metadata: Annotated[dict[Name, Annotated[str, Field(max_length=512)]], Field(max_length=16)] | None = None
    user: Name | None = None

    @property
    def turns(self) -> list[dict[str, Any]]:
        """As chat templates know them."""
        given = [turn("user", self.input)] if isinstance(self.input, str) else [own.turn for own in self.input]
        return given if self.instructions is None else [turn("system", self.instructions), *given]


@dataclass(slots=True, kw_only=True)
class Reply:
    """A response in the making."""

    model: str
    asked: ResponsesRequest
    prompt_tokens: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    pieces: list[Piece] = field(default_factory=list)
    events: int = 0
    ping = PING

    def take(self, piece: Piece) -> None:
        """Remember a piece."""
        self.pieces.append(piece)

    @property
    def text(self) -> str:
        """What has been said."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def status(self) -> str:
        """Whether the text ended by itself."""
        return "incomplete" if self.pieces[-1].finish == "length" else "completed"

    def complete(self) -> dict[str, Any]:
        """The whole response."""
        return self.response(self.status, [self.message(self.status, [self.part(self.text)])])

    def openings(self) -> Iterator[str]:
        """The response, its message and the part of it that will be text, each still empty."""
        yield self.event("response.created", response=self.response("in_progress", []))
        yield self.event("response.in_progress", response=self.response("in_progress", []))
        yield self.event("response.output_item.added", output_index=0, item=self.message("in_progress", []))
        yield self.of_text("response.content_part.added", part=self.part(""))

    def chunks(self, piece: Piece) -> Iterator[str]:
        """Text."""
        if piece.text:
            yield self.of_text("response.output_text.delta", delta=piece.text, logprobs=[])

    def closing(self) -> Iterator[str]:
        """The text, its part, its message and the response, each whole."""
        yield self.of_text("response.output_text.done", text=self.text, logprobs=[])
        yield self.of_text("response.content_part.done", part=self.part(self.text))
        (message,) = self.complete()["output"]
        yield self.event("response.output_item.done", output_index=0, item=message)
        yield self.event(f"response.{self.status}", response=self.complete())

    def failure(self, status: int, message: str) -> str:
        """The event that tells of a failure."""
        error = openai_error(status, message)["error"]
        return self.event("error", code=error["code"], message=error["message"], param=error["param"])

    def response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        """The response with such an output."""
        asked, read, new = self.asked, self.prompt_tokens, sum(piece.tokens for piece in self.pieces)
        usage = {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": self.pieces[0].reused if self.pieces else 0},
            "output_tokens": new,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + new,
        }
        form = asked.text.format if asked.text and asked.text.format else PlainFormat(type="text")
        return {
            "id": f"resp_{self.id}",
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": self.model,
            "output": output,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": {"format": form.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": asked.tool_choice or "auto",
            "tools": [],
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "usage": None if status == "in_progress" else usage,
            "user": asked.user,
        }

    def message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        """The one message of the output."""
        return {
            "type": "message",
            "id": f"msg_{self.id}",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def part(self, text: str) -> dict[str, Any]:
        """The one part of the message."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def of_text(self, kind: str, **told: Any) -> str:
        """An event that concerns the text."""
        return self.event(kind, item_id=f"msg_{self.id}", **PLACE, **told)

    def event(self, kind: str, **told: Any) -> str:
        """An event of the stream, with its number in it."""
        self.events += 1
        return event({"type": kind, "sequence_number": self.events - 1, **told}, kind)


def routes(languages: Languages) -> APIRouter:
    """The route /v1/responses."""
    router = APIRouter(prefix="/v1/responses")

    @router.post("")
    async def responses(request: Request, asked: ResponsesRequest) -> Response:
        language = served(languages, asked.model)
        return await language.answer(request, response(language, asked))

    return router


def response(language: Language, asked: ResponsesRequest) -> Ask:
    """What POST /v1/responses asks for."""
    sampling = Sampling(
        temperature=1.0 if asked.temperature is None else float(asked.temperature),
        top_p=1.0 if asked.top_p is None else float(asked.top_p),
        top_k=max(asked.top_k or 0, 0),
        min_p=float(asked.min_p or 0),
        seed=None if asked.seed is None else asked.seed % 2**64,
        max_tokens=asked.max_output_tokens,
        grammar=grammar_of(asked.text.format if asked.text else None),
    )
    return Ask(
        encode=lambda: [language.encode_chat(asked.turns)],
        sampling=sampling,
        write=lambda count, read: Reply(model=language.service.name, asked=asked, prompt_tokens=read),
        stream=bool(asked.stream),
    )
