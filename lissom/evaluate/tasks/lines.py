"""Files of one JSON object a line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lissom.errors import DataError
from lissom.files import read_text

Fields = Mapping[str, type]  # str, int, float, or list: of texts
SAID = {str: "a text", int: "a whole number", float: "a number", list: "a list of texts"}


def objects(file: Path, fields: Fields) -> list[dict[str, Any]]:
    """The objects of a file, or of all .jsonl files of a folder in the order of their names.

    Raises:
        DataError: one cannot be read, or an object lacks a field or has something else in it.
    """
    files = sorted(file.glob("*.jsonl")) if file.is_dir() else [file]
    found = [
        whole(line, fields, f"{each.name}:{number}")
        for each in files
        for number, line in enumerate(read_text(each).splitlines(), 1)
        if line.strip()
    ]
    if not found:
        raise DataError(f"{file}: no examples are in it; give a .jsonl file, or a folder of them")
    return found


def whole(line: str, fields: Fields, place: str) -> dict[str, Any]:
    """The object that a line is.

    Raises:
        DataError: it is none, or lacks a field, or has something else in one.
    """
    try:
        given = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: no JSON ({error})") from None
    missing = [name for name in fields if not isinstance(given, dict) or name not in given]
    if missing:
        raise DataError(f"{place}: has no {missing[0]!r}; each line needs {', '.join(fields)}")
    for name, kind in fields.items():
        if not fits(given[name], kind):
            raise DataError(f"{place}: {name!r} is {given[name]!r} where {SAID[kind]} is needed")
    return dict(given)


def fits(value: Any, kind: type) -> bool:
    """Whether a value is of a field's kind."""
    if kind is list:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    return type(value) is kind or (kind is float and type(value) is int)
