"""What the values of knobs may be: each function is given them by name, and refuses the first that is impossible."""

import math
from collections.abc import Collection

from lissom.errors import RecipeError


def at_least(least: float, **knobs: float) -> None:
    """Numbers that may be as large as one likes.

    Raises:
        RecipeError: one is less, infinite or none.
    """
    for name, value in knobs.items():
        if not least <= value < math.inf:
            raise RecipeError(f"{name}={value} must be {least} or more{endless(value)}")


def above(bound: float, **knobs: float) -> None:
    """Numbers that may come as close to a bound as one likes.

    Raises:
        RecipeError: one is the bound or less, infinite or none.
    """
    for name, value in knobs.items():
        if not bound < value < math.inf:
            raise RecipeError(f"{name}={value} must be more than {bound}{endless(value)}")


def endless(value: float) -> str:
    """What there is to say besides of infinity, and of what is no number."""
    return "" if math.isfinite(value) else ", and finite"


def between(least: float, most: float, **knobs: float) -> None:
    """Numbers in a range.

    Raises:
        RecipeError: one lies outside, or is none.
    """
    for name, value in knobs.items():
        if not least <= value <= most:
            raise RecipeError(f"{name}={value} must be from {least} to {most}")


def fraction(**knobs: float) -> None:
    """The part of a whole that goes: something must be left.

    Raises:
        RecipeError: one is no such part.
    """
    for name, value in knobs.items():
        if not 0 <= value < 1:
            raise RecipeError(f"{name}={value} must be a fraction from 0 up to 1, such as 0.5")


def one_of(possible: Collection[int] | Collection[str], **knobs: int | str) -> None:
    """A choice.

    Raises:
        RecipeError: one is no choice there is.
    """
    for name, value in knobs.items():
        if value not in possible:
            *others, last = map(str, possible)
            raise RecipeError(f"{name}={value!r} is not possible; choose {', '.join(others)} or {last}")


def seed_of(seed: int) -> int:
    """A seed that generators take.

    Raises:
        RecipeError: it is none.
    """
    between(0, 2**63 - 1, seed=seed)
    return seed
