"""JSON and text on disk, and what JSON can hold."""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Another name to write a file under; what is there when the block ends well is brought to disk and takes its name.

    Raises:
        ArtifactError: the disk is full or cannot be written; then the file is as it was.
    """
    new = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield new
        with new.open("rb") as written:
            os.fsync(written.fileno())
        new.replace(file)
    except OSError as error:
        raise ArtifactError(f"{file} cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):  # of a disk that cannot be written; what went wrong first is what is said
            new.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """A dataclass as JSON can hold it; what is not finite becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
