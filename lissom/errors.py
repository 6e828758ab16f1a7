"""What can go wrong for a user, drawn as a tree.

    LissomError
    ├── ModelError      the model given is none, is unknown, or has no such layer
    ├── DataError       the data given does not fit, or is too small for what was asked
    ├── RecipeError     a step names a technique, a knob or a value that does not exist or cannot work
    └── ArtifactError   a folder on disk is incomplete, altered, or cannot be written

Every message is one line: what was given, what is possible, what to do. The command line prints it and exits with 2.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class LissomError(ValueError):
    """The user can put this right; the message says how."""


class ModelError(LissomError):
    """The model given is none, is unknown, or has no such layer."""


class DataError(LissomError):
    """The data given does not fit the model, or is too small for what was asked."""


class RecipeError(LissomError):
    """A step names a technique, a knob or a value that does not exist or cannot work."""


class ArtifactError(LissomError):
    """A folder on disk is incomplete, altered, or cannot be written."""


def reason(error: BaseException) -> str:
    """The first line of another library's error, for a message of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def meant(given: str, possible: Iterable[str]) -> str:
    """The end of a message about a name that does not exist: the one that it looks like, if there is one."""
    close = get_close_matches(given, [str(name) for name in possible], 1)
    return f"; did you mean {close[0]!r}?" if close else ""
