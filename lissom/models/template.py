"""Chat templates, as transformers compiles them: jinja2 in a sandbox, with some functions, filters and tags more."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


def compiled(text: str) -> Template:
    """The template of a text.

    Raises:
        TemplateError: it is none.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "namespace": Guarded,
        "dict": Dict(),
    }
    return environment.from_string(text)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """A template that is rendered by this thread meanwhile may take so long: it comes with a model, and loops in it may
    be without end.

    Raises:
        TemplateError: it takes longer.
    """
    deadline, before = time.monotonic() + seconds, sys.gettrace()

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > deadline:
            raise TemplateError(f"it takes longer than {seconds:g} seconds")
        return look

    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


class Generation(Extension):
    """The tag around what the assistant says: it marks it for training, and writes nothing."""

    tags = {"generation"}  # noqa: RUF012  # so declares jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What is inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Guarded(Namespace):
    """A namespace without names that begin with an underscore: they may lead out of the sandbox."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be one of the names
        self, *given = args
        found = dict(*given, **kwargs)
        for name in found:
            check(name)
        Namespace.__init__(self, found)

    def __setitem__(self, name: str, value: Any) -> None:
        check(name)
        super().__setitem__(name, value)


class Dict:
    """The type `dict` without what it has beside these two."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """A new one."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """A new one of some keys."""
        return dict.fromkeys(*args)


def check(name: Any) -> None:
    """See that a namespace may have a name.

    Raises:
        SecurityError: it begins with an underscore.
    """
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template cannot set {name!r} on a namespace")


def refuse(message: str) -> None:
    """A conversation that the template does not take.

    Raises:
        TemplateError: always.
    """
    raise TemplateError(message)


def to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is; the filter of jinja2 would escape it for HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
