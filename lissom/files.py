"""JSON and text on disk."""

import json
from pathlib import Path
from typing import Any

from lissom.errors import ArtifactError, DataError


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ArtifactError: it is missing or no JSON object.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ArtifactError(f"{file} holds no JSON object")
    return found


def read_text(file: Path) -> str:
    """A text file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as text: {error}") from None
