"""The Responses API of OpenAI, without memory: what was said before is given again, and nothing is stored.

What the API knows and no model here does, such as searching the web, is refused by name.
"""

import time
import uuid
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from lissom.engine import Sampling
from lissom.errors import DataError
from lissom.server.answers import PING, event
from lissom.server.calls import may_call, must_call
from lissom.server.failures import openai_error
from lissom.server.language import Ask, Language, Languages, Prompts, served
from lissom.server.openai import grammar_of
from lissom.server.responses_wire import ResponsesRequest, ResponseToolName
from lissom.server.tools import ANYTHING, Call, Reader, Tools, tools_of
from lissom.server.wire import PlainFormat, Wire
from lissom.server.worker import Piece


@dataclass(slots=True, kw_only=True)
class Reply:
    """A response in the making: messages, and calls if there are `tools`, in the order in which they come."""

    model: str
    asked: ResponsesRequest
    prompt_tokens: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    pieces: list[Piece] = field(default_factory=list)
    events: int = 0
    tools: Tools | None = None
    reader: Reader | None = field(init=False)
    items: list[dict[str, Any]] = field(default_factory=list)  # those that are whole
    text: str | None = None  # of the message that is being written
    ping = PING

    def __post_init__(self) -> None:
        self.reader = None if self.tools is None else Reader(tools=self.tools)

    def take(self, piece: Piece) -> None:
        """Remember a piece."""
        self.pieces.append(piece)

    @property
    def status(self) -> str:
        """Whether the text ended by itself."""
        return "incomplete" if self.pieces[-1].finish == "length" else "completed"

    def complete(self) -> dict[str, Any]:
        """The whole response."""
        for piece in self.pieces:
            deque(self.chunks(piece), maxlen=0)
        deque(self.ended(), maxlen=0)
        return self.response(self.status, self.items)

    def openings(self) -> Iterator[str]:
        """The response, still empty."""
        yield self.event("response.created", response=self.response("in_progress", []))
        yield self.event("response.in_progress", response=self.response("in_progress", []))

    def chunks(self, piece: Piece) -> Iterator[str]:
        """Text, and calls."""
        if self.reader is None:
            parts: list[str | Call] = [piece.text] if piece.text else []
        else:
            parts = [*self.reader.push(piece.text), *(self.reader.finish() if piece.finish else ())]
        for part in parts:
            yield from self.called(part) if isinstance(part, Call) else self.said(part)

    def said(self, text: str) -> Iterator[str]:
        """Text of a message, which begins with it if there is none."""
        if self.text is None:
            self.text = ""
            yield self.event("response.output_item.added", **self.place, item=self.message("in_progress", []))
            yield self.of_text("response.content_part.added", part=self.part(""))
        if text:
            self.text += text
            yield self.of_text("response.output_text.delta", delta=text, logprobs=[])

    def called(self, call: Call) -> Iterator[str]:
        """A call, from its beginning to its end."""
        yield from self.silent("completed")
        item = {"type": "function_call", "id": self.name, "call_id": call.id, "name": call.name}
        empty, whole = ({**item, "status": how} for how in ("in_progress", "completed"))
        whole["arguments"] = call.arguments
        told = {**self.place, "item_id": self.name}
        yield self.event("response.output_item.added", **self.place, item={**empty, "arguments": ""})
        yield self.event("response.function_call_arguments.delta", **told, delta=call.arguments)
        yield self.event("response.function_call_arguments.done", **told, arguments=call.arguments, name=call.name)
        yield self.event("response.output_item.done", **self.place, item=whole)
        self.items.append(whole)

    def silent(self, status: str) -> Iterator[str]:
        """The end of the message that is being written, if there is one."""
        if self.text is None:
            return
        part = self.part(self.text)
        item = self.message(status, [part])
        yield self.of_text("response.output_text.done", text=self.text, logprobs=[])
        yield self.of_text("response.content_part.done", part=part)
        yield self.event("response.output_item.done", **self.place, item=item)
        self.items.append(item)
        self.text = None

    def ended(self) -> Iterator[str]:
        """The end of what is being written; where nothing has been, an empty message."""
        if not self.items:
            yield from self.said("")
        yield from self.silent(self.status)

    def closing(self) -> Iterator[str]:
        """The end of the last message and of the response."""
        yield from self.ended()
        yield self.event(f"response.{self.status}", response=self.response(self.status, self.items))

    def failure(self, status: int, message: str) -> str:
        """The event that tells of a failure."""
        error = openai_error(status, message)["error"]
        return self.event("error", code=error["code"], message=error["message"], param=error["param"])

    def response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        """The response with such an output."""
        asked, read, new = self.asked, self.prompt_tokens, sum(len(piece.tokens) for piece in self.pieces)
        usage = {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": self.pieces[0].reused if self.pieces else 0},
            "output_tokens": new,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + new,
        }
        chosen = asked.tool_choice
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
            "tool_choice": chosen.model_dump() if isinstance(chosen, Wire) else chosen or "auto",
            "tools": [{**tool.model_dump(), "strict": bool(tool.strict)} for tool in asked.tools or ()],
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "usage": None if status == "in_progress" else usage,
            "user": asked.user,
        }

    def message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        """The message that is being written."""
        return {
            "type": "message",
            "id": self.name,
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def part(self, text: str) -> dict[str, Any]:
        """The one part of a message."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def of_text(self, kind: str, **told: Any) -> str:
        """An event that concerns the text."""
        return self.event(kind, item_id=self.name, content_index=0, **self.place, **told)

    @property
    def place(self) -> dict[str, Any]:
        """Where in the output it is what is being written."""
        return {"output_index": len(self.items)}

    @property
    def name(self) -> str:
        """How it is called."""
        return f"{'fc' if self.text is None else 'msg'}_{self.id}_{len(self.items)}"

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
    """What POST /v1/responses asks for.

    Raises:
        DataError: tools, of which the model knows none; or two ways to say what the text must be.
    """
    wanted = grammar_of(asked.text.format if asked.text else None)
    schemas = {tool.name: tool.parameters or ANYTHING for tool in asked.offered}
    strict = [tool.name for tool in asked.offered if tool.strict]
    tools = tools_of(language.tokenizer, schemas, strict) if schemas else None
    single, choice = asked.parallel_tool_calls is False, asked.tool_choice
    only = choice.name if isinstance(choice, ResponseToolName) else None
    called = None
    if tools:
        certain = only or choice == "required"
        called = must_call(tools, only, single=single) if certain else may_call(tools, single=single)
    if called and wanted:
        raise DataError("tool_choice or strict tools and text.format: both say what the text must be; give one")
    sampling = Sampling(
        temperature=1.0 if asked.temperature is None else float(asked.temperature),
        top_p=1.0 if asked.top_p is None else float(asked.top_p),
        top_k=max(asked.top_k or 0, 0),
        min_p=float(asked.min_p or 0),
        seed=None if asked.seed is None else asked.seed % 2**64,
        max_tokens=asked.max_output_tokens,
        stop=tools.single if tools and single and not called else (),
        grammar=called or wanted,
    )

    def write(_: int, prompts: Prompts) -> Reply:
        return Reply(model=language.name, asked=asked, prompt_tokens=sum(map(len, prompts)), tools=tools)

    return Ask(
        encode=lambda: [language.encode_chat(asked.turns, tools=[tool.shown for tool in asked.offered])],
        sampling=sampling,
        write=write,
        stream=bool(asked.stream),
    )
