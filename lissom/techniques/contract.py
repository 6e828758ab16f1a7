"""What a technique's signature says: before the `/` the statistics it needs, after the `*` its knobs."""

import inspect
from collections.abc import Mapping
from types import UnionType
from typing import Any, get_args, get_type_hints

from lissom.errors import RecipeError
from lissom.formats import Weight
from lissom.statistics import Statistic
from lissom.techniques import TECHNIQUES
from lissom.types import Step


def needs(technique: str) -> tuple[type[Statistic], ...]:
    """The statistics that calibration must collect for a technique."""
    function = TECHNIQUES[technique]
    hints = get_type_hints(function)
    names = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_ONLY]
    return tuple(hints[name] for name in names[1:])


def knobs(technique: str) -> dict[str, tuple[tuple[type, ...], Any]]:
    """Each knob's types and default."""
    function = TECHNIQUES[technique]
    hints = get_type_hints(function)
    found = {}
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.KEYWORD_ONLY:
            hint = hints[p.name]
            found[p.name] = (get_args(hint) if isinstance(hint, UnionType) else (hint,), p.default)
    return found


def check(step: Step) -> None:
    """See that a step names a technique and knobs that exist, with values of their types.

    Raises:
        RecipeError: it does not; the message lists what is possible.
    """
    if step.technique not in TECHNIQUES:
        raise RecipeError(f"recipe: unknown technique {step.technique!r}; there are {', '.join(TECHNIQUES)}")
    possible = knobs(step.technique)
    for name, value in step.knobs.items():
        if name not in possible:
            known = ", ".join(possible) or "none"
            raise RecipeError(f"recipe: {step.technique} has no knob {name!r}; its knobs are {known}")
        types = possible[name][0]
        if type(value) not in types and not (float in types and type(value) is int):
            wanted = " or ".join(t.__name__ for t in types)
            raise RecipeError(f"recipe: {step.technique}: {name}={value!r} is no {wanted}")


def apply(step: Step, layer: str, weight: Weight, statistics: Mapping[type[Statistic], Statistic]) -> Weight:
    """Run a step on one layer's weight; an error names the technique and the layer.

    Raises:
        RecipeError: a knob does not suit this layer.
    """
    found = [statistics[kind] for kind in needs(step.technique)]
    try:
        return TECHNIQUES[step.technique](weight, *found, **step.knobs)
    except RecipeError as error:
        raise RecipeError(f"{step.technique}: {error} of {layer}") from None
