"""How the OpenAI API writes choices down: as a chat or as a completion, in one piece or in many."""

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isnan, nan
from typing import Any

from lissom.engine import Choice
from lissom.server.failures import openai_error
from lissom.server.language import Prompts
from lissom.server.offsets import Offsets, of_prompt
from lissom.server.tools import Call, Reader, Tools, read
from lissom.server.worker import Piece

Spell = Callable[[int], str]
Places = Callable[[], list[int]]
DONE = "data: [DONE]\n\n"
PING = ": still working\n\n"  # a comment: clients skip it, proxies see that the connection lives


class Chat:
    """POST /v1/chat/completions."""

    prefix = "chatcmpl-"
    whole = "chat.completion"
    part = "chat.completion.chunk"

    def opening(self, index: int) -> Mapping[str, Any]:
        """Who speaks."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def pieces(self, index: int, text: str, logprobs: Any) -> list[Mapping[str, Any]]:
        """Text."""
        return [self.delta(index, {"content": text}, logprobs)]

    def ending(self, index: int, finish: str) -> list[Mapping[str, Any]]:
        """Why it ended."""
        return [self.delta(index, {}, None, finish)]

    def delta(self, index: int, more: Mapping[str, Any], logprobs: Any, finish: str | None = None) -> dict[str, Any]:
        """What is new of a choice."""
        return {"index": index, "delta": more, "logprobs": logprobs, "finish_reason": finish}

    def choice(self, index: int, text: str, logprobs: Any, finish: str | None) -> Mapping[str, Any]:
        """A message."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def logprobs(self, choices: Sequence[Choice], spell: Spell, places: Places) -> Mapping[str, Any]:
        """One entry per token, with its alternatives inside; where they stand is not told."""

        def entry(token: int, logprob: float) -> dict[str, Any]:
            text = spell(token)
            return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

        content = [
            {**entry(choice.token, choice.logprob), "top_logprobs": [entry(*other) for other in choice.top]}
            for choice in choices
        ]
        return {"content": content, "refusal": None}


class Calling(Chat):
    """The same, of a model that may call tools; the calls of a choice follow one another in one message."""

    def __init__(self, tools: Tools, count: int) -> None:
        self.tools = tools
        self.readers = [Reader(tools=tools) for _ in range(count)]
        self.calls = [0] * count

    def pieces(self, index: int, text: str, logprobs: Any) -> list[Mapping[str, Any]]:
        """What has become certain of the text: what is said, and what is called."""
        deltas = self.deltas(index, self.readers[index].push(text))
        if logprobs is not None:  # they come with the tokens, whatever of these is held back
            return [self.delta(index, more, logprobs if k == 0 else None) for k, more in enumerate(deltas or [{}])]
        return [self.delta(index, more, None) for more in deltas]

    def ending(self, index: int, finish: str) -> list[Mapping[str, Any]]:
        """What was held back, and why it ended."""
        rest = [self.delta(index, more, None) for more in self.deltas(index, self.readers[index].finish())]
        return [*rest, self.delta(index, {}, None, self.reason(finish, self.calls[index]))]

    def deltas(self, index: int, parts: Iterable[str | Call]) -> list[Mapping[str, Any]]:
        """Parts of a text as they are told."""
        found = list[Mapping[str, Any]]()
        for part in parts:
            if isinstance(part, str):
                found.append({"content": part})
            else:
                found.append({"tool_calls": [{"index": self.calls[index], **told(part)}]})
                self.calls[index] += 1
        return found

    def choice(self, index: int, text: str, logprobs: Any, finish: str | None) -> Mapping[str, Any]:
        """A message."""
        said, calls = read(self.tools, text)
        if not calls:
            return super().choice(index, text, logprobs, finish)
        message = {"role": "assistant", "content": said or None, "refusal": None, "tool_calls": [*map(told, calls)]}
        reason = self.reason(str(finish), len(calls))
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def reason(self, finish: str, calls: int) -> str:
        """Why a text ended in which there are so many calls."""
        return "tool_calls" if calls and finish == "stop" else finish


def told(call: Call) -> dict[str, Any]:
    """A call."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


class Completion:
    """POST /v1/completions."""

    prefix = "cmpl-"
    whole = "text_completion"
    part = "text_completion"

    def opening(self, index: int) -> None:
        """Nothing comes before the text."""

    def pieces(self, index: int, text: str, logprobs: Any) -> list[Mapping[str, Any]]:
        """Text."""
        return [self.choice(index, text, logprobs, None)]

    def ending(self, index: int, finish: str) -> list[Mapping[str, Any]]:
        """Why it ended."""
        return [self.choice(index, "", None, finish)]

    def choice(self, index: int, text: str, logprobs: Any, finish: str | None) -> Mapping[str, Any]:
        """A text."""
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def logprobs(self, choices: Sequence[Choice], spell: Spell, places: Places) -> Mapping[str, Any]:
        """One list per kind; of the first token of a text nothing is expected."""
        return {
            "tokens": [spell(choice.token) for choice in choices],
            "token_logprobs": [None if isnan(choice.logprob) else choice.logprob for choice in choices],
            "top_logprobs": [
                None if isnan(choice.logprob) else {spell(token): logprob for token, logprob in choice.top}
                for choice in choices
            ],
            "text_offset": places(),
        }


Shape = Chat | Completion


@dataclass(slots=True, kw_only=True)
class Choices:
    """An answer of one or more choices in the making; those of a prompt begin with what it `echoes`, if it does.

    `decode` makes text of tokens; in what was written special ones are shown if `special`. Streamed it tells the usage
    in an event of its own `with_usage`, and so far in every event if `continuously`.
    """

    shape: Shape
    model: str
    count: int
    prompts: Prompts
    each: int = 1
    echoes: Sequence[str] | None = None
    with_usage: bool = False
    continuously: bool = False
    with_logprobs: bool = False
    with_prompt_logprobs: bool = False
    spell: Spell
    decode: Callable[..., str]
    special: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    pieces: list[list[Piece]] = field(init=False)
    offsets: list[Offsets] = field(init=False)  # of what is written
    written: int = field(init=False, default=0)  # tokens
    ping = PING

    def __post_init__(self) -> None:
        self.pieces = [[] for _ in range(self.count)]
        begun = [0 if self.echoes is None else len(self.echoes[index // self.each]) for index in range(self.count)]
        self.offsets = [Offsets(partial(self.decode, special=self.special), behind) for behind in begun]

    def take(self, piece: Piece) -> None:
        """Remember a piece."""
        self.pieces[piece.index].append(piece)
        self.written += len(piece.tokens)

    @property
    def usage(self) -> dict[str, Any]:
        """Token counts; of a prompt that has `each` continuations, once."""
        given = sum(map(len, self.prompts))
        reused = sum(pieces[0].reused for pieces in self.pieces[:: self.each] if pieces)
        return {
            "prompt_tokens": given,
            "prompt_tokens_details": {"cached_tokens": reused},
            "completion_tokens": self.written,
            "total_tokens": given + self.written,
        }

    def complete(self) -> dict[str, Any]:
        """The whole answer."""
        choices = [
            {
                **self.shape.choice(
                    index,
                    "".join(self._text(piece) for piece in pieces),
                    self._logprobs(pieces),
                    pieces[-1].finish,
                ),
                **self._prompt_logprobs(pieces[0]),
            }
            for index, pieces in enumerate(self.pieces)
        ]
        return {**self._head(self.shape.whole), "choices": choices, "usage": self.usage}

    def openings(self) -> Iterator[str]:
        """The events before any text."""
        for index in range(self.count):
            if opening := self.shape.opening(index):
                yield self._event([opening])

    def chunks(self, piece: Piece) -> Iterator[str]:
        """The events of one piece: its text, then the end if this is it."""
        text = self._text(piece)
        if text or self._choices(piece):
            for more in self.shape.pieces(piece.index, text, self._logprobs([piece])):
                yield self._event([more])
        if piece.finish is not None:
            for last in self.shape.ending(piece.index, piece.finish):
                yield self._event([last])

    def closing(self) -> Iterator[str]:
        """The events after all text."""
        if self.with_usage:
            yield self._event([], self.usage)
        yield DONE

    def failure(self, status: int, message: str) -> str:
        """The event that tells of a failure."""
        return event(openai_error(status, message))

    def _echo(self, piece: Piece) -> int | None:
        """Which prompt a piece is the first one behind, where they are echoed."""
        first = self.echoes is not None and piece is self.pieces[piece.index][0]
        return piece.index // self.each if first else None

    def _text(self, piece: Piece) -> str:
        prompt = self._echo(piece)
        return piece.text if prompt is None or self.echoes is None else self.echoes[prompt] + piece.text

    def _choices(self, piece: Piece) -> Sequence[Choice]:
        prompt = self._echo(piece)
        if prompt is None or not self.with_logprobs:
            return piece.choices
        return [Choice(token=self.prompts[prompt][0], logprob=nan), *piece.read, *piece.choices]

    def _prompt_logprobs(self, piece: Piece) -> Mapping[str, Any]:
        """What was expected in the place of each token of the prompt, but the first (a field of vLLM)."""
        if not self.with_prompt_logprobs:
            return {}
        return {"prompt_logprobs": [None, *(self._expected(choice) for choice in piece.read)]}

    def _expected(self, choice: Choice) -> Mapping[str, Any]:
        ranks = {token: rank for rank, (token, _) in enumerate(choice.top, 1)}
        every = {choice.token: choice.logprob, **dict(choice.top)}
        return {
            str(token): {"logprob": logprob, "rank": ranks.get(token), "decoded_token": self.spell(token)}
            for token, logprob in every.items()
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.shape.prefix + self.id, "object": kind, "created": self.created, "model": self.model}

    def _event(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, Any] | None = None) -> str:
        body = {**self._head(self.shape.part), "choices": choices}
        if self.continuously and usage is None:
            usage = self.usage
        return event({**body, "usage": usage} if self.with_usage or self.continuously else body)

    def _logprobs(self, pieces: Sequence[Piece]) -> Mapping[str, Any] | None:
        if not self.with_logprobs:
            return None

        def places() -> list[int]:
            return [place for piece in pieces for place in self._places(piece)]

        choices = [choice for piece in pieces for choice in self._choices(piece)]
        return self.shape.logprobs(choices, self.spell, places)

    def _places(self, piece: Piece) -> list[int]:
        """Where in the text the tokens stand that `_choices` has of a piece; asked of each once, as they came."""
        prompt, before = self._echo(piece), list[int]()
        if prompt is not None and self.echoes is not None:
            ways = (partial(self.decode, special=special) for special in (True, False))
            before = of_prompt(self.prompts[prompt], self.echoes[prompt], ways)
        return before + self.offsets[piece.index].push(choice.token for choice in piece.choices)


def event(body: Mapping[str, Any], name: str | None = None) -> str:
    """A server-sent event, which may have a name."""
    named = "" if name is None else f"event: {name}\n"
    return f"{named}data: {json.dumps(body, allow_nan=False)}\n\n"
