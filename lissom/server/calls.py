"""What a text must be in which tools are called: grammars, in llguidance's kind of Lark.

Where a call is certain the text is nothing but calls. Where the model calls as it likes, and a tool is strict, what
begins like a call becomes one that the schemas allow, and the rest is free.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lissom.engine import Grammar
from lissom.server.tools import ANYTHING, Dialect, Tools

MOST = 8  # calls that are made sure of
BLANKS = {"whitespace_pattern": " ?"}  # between the parts of JSON that is made sure of


def must_call(tools: Tools, only: str | None = None, *, single: bool = False) -> Grammar:
    """A text that is nothing but calls, of which there are some, or a single one, or one of the only tool given."""
    more = 0 if single or only is not None else MOST - 1
    again = repeated('"\\n" opens called', more) if tools.dialect.closes else ""
    schemas = {name: schema for name, schema in tools.schemas.items() if only in (None, name)}
    return grammar(tools, [f"start: opens called {again}"], schemas, more)


def may_call(tools: Tools, *, single: bool = False) -> Grammar | None:
    """A text of the model's own, in which what begins like a call is one; None where no tool is strict."""
    if not tools.strict:
        return None
    schemas = {name: schema if name in tools.strict else ANYTHING for name, schema in tools.schemas.items()}
    rules = text_or_calls(tools) if tools.dialect.bare else text_with_calls(tools, single=single)
    return grammar(tools, rules, schemas, 0 if single else MOST - 1)


def text_with_calls(tools: Tools, *, single: bool) -> list[str]:
    """Text, and calls wherever they are opened; a single one ends it."""
    opens = tools.dialect.opens
    said = either("TEXT", [token for text, token in tools.shown.items() if text != opens])
    call = f"({either('begun', token_of(tools, opens))}) called"
    return [
        f"start: ({said})* ({call})?" if single else f"start: ({said} | {call})*",
        f"begun[lazy]: ANY {json.dumps(opens)}",
        r"ANY: /(.|\n)*/",
        r"TEXT: /(.|\n)+/",
    ]


def text_or_calls(tools: Tools) -> list[str]:
    """Text that does not begin as a bare call does, which could not be told from one; or calls, which end it.

    Tokens that are left out of a text come only before it, lest they part what opens a call.
    """
    opens, bare = tools.dialect.opens, tools.dialect.bare
    rules = [rf"TEXT: /[^ \t\n\r\{bare}](.|\n)*/", r"BLANK: /[ \t\n\r]+/"]
    begin = f"({either('BLANK', tools.hidden)})*"
    if not opens:
        return [f"start: {begin} (TEXT | called)?", *rules]
    begun = f"begun[lazy]: TEXT {json.dumps(opens)}"
    return [f"start: {begin} (TEXT | ((opens | begun) BLANK?)? called)?", begun, *rules]


def grammar(tools: Tools, rules: Sequence[str], schemas: Mapping[str, Mapping[str, Any]], more: int) -> Grammar:
    """Rules, and those for what opens calls, what is `called` behind it, and what closes it.

    Where calls are a list, what is called is one, and so many more.
    """
    dialect = tools.dialect
    every = [
        *rules,
        f"opens: {either(json.dumps(dialect.opens), token_of(tools, dialect.opens))}",
        f"closes: {either(json.dumps(dialect.closes), token_of(tools, dialect.closes))}",
        f"called: {called(dialect, more)}",
        f"call: {' | '.join(f'tool{k}' for k in range(len(schemas)))}",
        *(f"tool{k}: %json {json.dumps(written(dialect, *tool))}" for k, tool in enumerate(schemas.items())),
    ]
    return Grammar(kind="grammar", text="\n".join(every))


def called(dialect: Dialect, more: int) -> str:
    """What stands behind what opens a call, to the end."""
    if dialect.listed:
        return '"[" call ' + repeated('", " call', more) + ' "]"'
    return '"\\n" call "\\n" closes' if dialect.closes else "call"


def written(dialect: Dialect, name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a call."""
    inside = {key: value for key, value in schema.items() if key != "$defs"}
    keys = {"name": {"const": name}, dialect.arguments: inside}
    shared = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    whole = {"type": "object", "properties": keys, "required": list(keys), "additionalProperties": False}
    return {**whole, **shared, "x-guidance": BLANKS}


def token_of(tools: Tools, text: str) -> list[int]:
    """The token that is shown as such a text, if there is one."""
    return [tools.shown[text]] if text in tools.shown else []


def either(rule: str, tokens: Collection[int]) -> str:
    """A rule, or any of these tokens."""
    return f"{rule} | <[{','.join(map(str, tokens))}]>" if tokens else rule


def repeated(rule: str, most: int) -> str:
    """A rule, up to so many times."""
    return f"({rule}){{0,{most}}}" if most else ""
