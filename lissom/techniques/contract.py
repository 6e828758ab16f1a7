"""What a technique's signature says: before the `/` what it is given, after the `*` its knobs.

The first parameter is the weight as the steps before left it; a second `Weight` asks for the original; the statistics
that follow are what calibration must collect.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from lissom.errors import RecipeError, meant
from lissom.formats import Dense, Turned, Weight
from lissom.statistics import Fisher, Gram, Guided, Moments, Statistic
from lissom.techniques import BLOCK, COUPLING, KINDS, LAYER, MODEL, NORM, SEVERAL, SHAPE, STREAM, TECHNIQUES
from lissom.techniques.quantize.hadamard import turned_statistic
from lissom.types import Step

WHOLE = {"stream", "several", "model"}  # grains for which the whole model must be in memory
GRAINS: dict[str, Mapping[str, object]] = {
    "layer": LAYER,
    "coupling": COUPLING,
    "shape": SHAPE,
    "stream": STREAM,
    "norm": NORM,
    "several": SEVERAL,
    "block": BLOCK,
    "model": MODEL,
}


def grain(technique: str) -> str:
    """How much of a model a technique must see at once: a layer, a coupling, the stream, a norm, a block, the whole."""
    return next(name for name, table in GRAINS.items() if technique in table)


def kinds(technique: str) -> tuple[str, ...]:
    """The couplings that a shape technique acts on: those that it is named after, where nothing else is said."""
    return KINDS.get(technique, (technique,))


def needs(technique: str, *, guided: bool = False) -> tuple[type[Statistic], ...]:
    """The statistics that calibration must collect for a technique; guided ones are Grams by what the end loss says."""
    if technique in SEVERAL:
        return (Gram,)
    kinds = (get_args(hint)[0] if get_origin(hint) is tuple else hint for hint in given(technique))
    found = (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, (Moments, Gram, Fisher)))
    return tuple(Guided if guided and kind is Gram else kind for kind in found)


def needed(step: Step) -> tuple[type[Statistic], ...]:
    """The statistics that a step reads: its knob `guided`, where it has one, asks for guided Grams."""
    return needs(step.technique, guided=step.knobs.get("guided") is True)


def given(technique: str) -> tuple[Any, ...]:
    """The types of what stands before the `/`."""
    function = TECHNIQUES[technique]
    hints = get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return tuple(hints[p.name] for p in parameters if p.kind is p.POSITIONAL_ONLY)


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
        there = ", ".join(TECHNIQUES)
        raise RecipeError(
            f"recipe: unknown technique {step.technique!r}; there are {there}{meant(step.technique, TECHNIQUES)}"
        )
    possible = knobs(step.technique)
    for name, value in step.knobs.items():
        if name not in possible:
            known = ", ".join(possible) or "none"
            raise RecipeError(
                f"recipe: {step.technique} has no knob {name!r}; its knobs are {known}{meant(name, possible)}"
            )
        types = possible[name][0]
        if type(value) not in types and not (float in types and type(value) is int):
            wanted = " or ".join(t.__name__ for t in types)
            raise RecipeError(f"recipe: {step.technique}: {name}={value!r} is no {wanted}{unquoted(value, types)}")


def unquoted(value: object, types: tuple[type, ...]) -> str:
    """A hint for a number that came as text: YAML reads 1e-3 so, and whatever stands in quotes."""
    numbers = {int, float} & set(types)
    try:
        number = float(value) if numbers and isinstance(value, str) else None
    except ValueError:
        return ""
    if number is None or not math.isfinite(number) or (numbers == {int} and number != int(number)):
        return ""
    return f"; write {int(number) if numbers == {int} else number}, without quotes and without an exponent"


def apply(
    step: Step, layer: str, weight: Weight, original: Weight, statistics: Mapping[type[Statistic], Statistic]
) -> Weight:
    """Run a step on one layer's weight; an error names the technique and the layer.

    `original` is the weight before the recipe's first step.

    Raises:
        RecipeError: a knob does not suit this layer.
    """
    if isinstance(weight, Turned) and step.technique != "hadamard":
        return turned_apply(step, layer, weight, original, statistics)
    kinds = iter(needed(step))
    others = [original if kind is Weight else statistics[next(kinds)] for kind in given(step.technique)[1:]]
    try:
        return LAYER[step.technique](weight, *others, **step.knobs)
    except RecipeError as error:
        raise RecipeError(f"{step.technique}: {error} of {layer}") from None


def turned_apply(
    step: Step, layer: str, weight: Turned, original: Weight, statistics: Mapping[type[Statistic], Statistic]
) -> Turned:
    """Run a step behind the turn of a layer's input, where everything is seen turned."""
    seen = {kind: turned_statistic(statistic, weight.size) for kind, statistic in statistics.items()}
    first = Turned(base=original, size=weight.size).dense()  # turning back is turning
    return replace(weight, base=apply(step, layer, weight.base, Dense(values=first), seen))
