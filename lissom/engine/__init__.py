"""Running a language model for many requests at once, in its compressed form."""

from lissom.engine.engine import Engine
from lissom.engine.grammar import Grammar
from lissom.engine.sequence import Choice, Finish, Sampling, Sequence

__all__ = ["Choice", "Engine", "Finish", "Grammar", "Sampling", "Sequence"]
