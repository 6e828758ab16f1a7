"""Files of one JSON object a line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lissom.errors import DataError
from lissom.files import read_text


def objects(file: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    """The objects of a file, or of all .jsonl files of a folder in the order of their names.

    Raises:
        DataError: one cannot be read, or an object lacks a field.
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


def whole(line: str, fields: Sequence[str], place: str) -> dict[str, Any]:
    """The object that a line is.

    Raises:
        DataError: it is none, or lacks a field.
    """
    try:
        given = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: no JSON ({error})") from None
    missing = [name for name in fields if not isinstance(given, dict) or name not in given]
    if missing:
        raise DataError(f"{place}: has no {missing[0]!r}; each line needs {', '.join(fields)}")
    return dict(given)
