"""A recipe of modifiers while it is translated: which one it is at, what follows, and what has no counterpart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lissom.compress.sparseml.form import Asked
from lissom.compress.sparseml.layers import Layers
from lissom.compress.sparseml.schemes import Scheme
from lissom.errors import RecipeError
from lissom.types import Step

LINEAR = ["Linear"]
Grouped = list[tuple[list[str], Scheme]]  # layers, and how they are rounded


@dataclass(slots=True, kw_only=True)
class Work:
    """Where a translation stands; `waiting` are schemes that a modifier has told and leaves to a later one."""

    layers: Layers
    now: Asked
    later: Sequence[Asked] = ()
    waiting: Grouped = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, *notes: str) -> None:
        """Remember what is not quite as it was asked for, once."""
        self.notes += [one for one in dict.fromkeys(notes) if one not in self.notes]


Handler = Callable[[dict[str, Any], Work], list[Step]]  # takes out of the arguments those that it has a use for


def refused(work: Work, what: str, instead: str) -> RecipeError:
    """The error of a modifier that asks for what cannot be done here."""
    return RecipeError(f"recipe: {work.now.name}: {what} has no counterpart; {instead}")


def number(work: Work, name: str, given: Any) -> float:
    """A number that is given as one.

    Raises:
        RecipeError: it is none.
    """
    try:
        return float(given)
    except (TypeError, ValueError):
        raise RecipeError(f"recipe: {work.now.name}: {name}={given!r} is no number; write one, such as 0.5") from None
