"""Running a language model for many requests at once, in its compressed form."""

from typing import TYPE_CHECKING, Any

from lissom.engine.sequence import Choice, Finish, Grammar, Sampling, Sequence

if TYPE_CHECKING:
    from lissom.engine.engine import Engine

__all__ = ["Choice", "Engine", "Finish", "Grammar", "Sampling", "Sequence"]


def __getattr__(name: str) -> Any:
    """The engine itself, when it is first asked for: who only talks to one in another process needs no PyTorch."""
    if name != "Engine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lissom.engine.engine import Engine

    return Engine
