"""Tools: how a family of models writes calls down, and how they are read from its text.

The chat template tells the family, for it shows the model how calls are written: Qwen and Hermes write each as JSON
between <tool_call> and </tool_call>, Mistral all of them as a list behind [TOOL_CALLS], Llama 3 one as JSON and nothing
else. What only looks like a call, or calls what is no tool, stays text.
"""

import json
import re
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lissom.errors import DataError

ANYTHING = {"type": "object"}
BRACKETS = re.compile("<.*>", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How calls are written: what opens and closes them, whether several are one list, how arguments are called.

    `mark` is in the family's chat templates. A text that begins with `bare` is a call without anything that opens it:
    some tokenizers do not spell that.
    """

    mark: str
    opens: str = ""
    closes: str = ""
    bare: str = ""
    listed: bool = False
    arguments: str = "arguments"


DIALECTS = (
    Dialect(mark="<tool_call>", opens="<tool_call>", closes="</tool_call>"),
    Dialect(mark="[TOOL_CALLS]", opens="[TOOL_CALLS]", bare="[", listed=True),
    Dialect(mark="ipython", bare="{", arguments="parameters"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of a tool; `arguments` are JSON."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:9])  # Mistral's templates want nine characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The tools that a model may call: the schemas of their arguments by name, and how it writes calls.

    Those that are `strict` are held to their schemas also where they are called as the model likes. Some tokens are no
    text to a grammar: `shown` are those that are read in a text nevertheless, `hidden` those that are left out of it.
    """

    dialect: Dialect
    schemas: Mapping[str, Mapping[str, Any]]
    strict: Collection[str] = ()
    shown: Mapping[str, int] = field(default_factory=dict)
    hidden: Sequence[int] = ()

    def calls(self, body: str) -> list[Call]:
        """The calls that stand between what opens and closes them; none where it is anything else."""
        try:
            found = json.loads(body, parse_constant=refused)
        except (ValueError, RecursionError):
            return []
        calls = [self.call(one) for one in (found if self.dialect.listed and isinstance(found, list) else [found])]
        return [] if None in calls else [call for call in calls if call is not None]

    def call(self, written: Any) -> Call | None:
        """A call, if it is one."""
        if not isinstance(written, dict):
            return None
        name, given = written.get("name"), written.get(self.dialect.arguments, {})
        if not isinstance(name, str) or name not in self.schemas or not isinstance(given, dict):
            return None
        return Call(name=name, arguments=json.dumps(given))

    @property
    def single(self) -> tuple[str, ...]:
        """What ends a text behind its first call, if it would not end there by itself.

        Raises:
            DataError: nothing does.
        """
        if self.dialect.listed:
            raise DataError("tools: the model calls several at once, in a list; they cannot be had one by one")
        return (self.dialect.closes,) if self.dialect.closes else ()


def refused(constant: str) -> None:
    """What JSON does not know, such as NaN.

    Raises:
        ValueError: always.
    """
    raise ValueError(constant)


def tools_of(tokenizer: Any, schemas: Mapping[str, Mapping[str, Any]], strict: Collection[str] = ()) -> Tools:
    """The tools of a model with such a tokenizer; of several chat templates by name, as the one for tools says.

    Raises:
        DataError: the template knows no tools, or writes calls in a way that is not read here.
    """
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("tool_use", template.get("default"))
    dialect = next((one for one in DIALECTS if template and "tools" in template and one.mark in template), None)
    if dialect is None:
        raise DataError("tools: the model's chat template knows none that can be read here; leave them out")
    backend = getattr(tokenizer, "backend_tokenizer", None)  # one written in Python knows no grammars: see spelling
    added = {} if backend is None else backend.get_added_tokens_decoder()
    hidden = [token for token, word in added.items() if word.special]
    # Others in such brackets are special to llguidance all the same: so are <tool_call> and <think> of Qwen.
    marks = {word.content: token for token, word in added.items() if BRACKETS.fullmatch(word.content)}
    shown = {text: token for text, token in marks.items() if token not in hidden}
    return Tools(dialect=dialect, schemas=schemas, strict=strict, shown=shown, hidden=hidden)


@dataclass(slots=True, kw_only=True)
class Reader:
    """Text as it comes, parted into what is said and what is called."""

    tools: Tools
    held: str = ""
    inside: bool = False
    opened: str = ""  # what has been taken away before the body of a call
    said: bool = False
    called: int = 0

    def push(self, text: str) -> Iterator[str | Call]:
        """What has become certain."""
        self.held += text
        dialect = self.tools.dialect
        while True:
            if not self.inside:
                yield from self.say(self.before())
            if not self.inside or not dialect.closes or dialect.closes not in self.held:
                return
            body, _, self.held = self.held.partition(dialect.closes)
            yield from self.closed(body, dialect.closes)

    def finish(self) -> Iterator[str | Call]:
        """What was held back: there is no more text."""
        rest, self.held = self.held, ""
        if self.inside:
            yield from self.closed(rest, "")
        elif rest.strip() or not self.called:
            yield from self.say(rest)

    def before(self) -> str:
        """The text before a call, as far as it is certain that none has begun in it."""
        dialect, held = self.tools.dialect, self.held
        if dialect.bare and not self.said:
            begun = held.lstrip()
            may_open = bool(dialect.opens) and dialect.opens.startswith(begun[: len(dialect.opens)])
            if not begun or (begun.startswith(dialect.bare) and not may_open):
                self.inside, self.opened = bool(begun), ""
                return ""
        at = held.find(dialect.opens) if dialect.opens else -1
        if at >= 0:
            said, end = held[:at].rstrip(), at + len(dialect.opens)
            self.inside, self.opened, self.held = True, held[len(said) : end], held[end:]
            return said
        cut = len(held) - overlap(held, dialect.opens)
        cut = len(held[:cut].rstrip())
        self.held = held[cut:]
        return held[:cut]

    def closed(self, body: str, closes: str) -> Iterator[str | Call]:
        """The calls of a body that has ended, or its text."""
        calls = self.tools.calls(body)
        self.inside = False
        self.called += len(calls)
        if calls:
            yield from calls
        else:
            yield from self.say(f"{self.opened}{body}{closes}")

    def say(self, text: str) -> Iterator[str]:
        """Text, if there is any."""
        if text:
            self.said = True
            yield text


def overlap(text: str, begun: str) -> int:
    """The length of the longest end of a text that begins another."""
    return next((n for n in range(min(len(text), len(begun) - 1), 0, -1) if begun.startswith(text[-n:])), 0)


def read(tools: Tools, text: str) -> tuple[str, Sequence[Call]]:
    """What a whole text says, and what it calls."""
    reader = Reader(tools=tools)
    parts = [*reader.push(text), *reader.finish()]
    said = "".join(part for part in parts if isinstance(part, str))
    return said, [part for part in parts if isinstance(part, Call)]
