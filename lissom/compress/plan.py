"""The plan: which steps of a recipe act on which layers, in phases.

Consecutive steps of techniques that must see equally much of a model make a phase: the layers are looked at once for
all of them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Any

from lissom.errors import RecipeError
from lissom.statistics import Statistic
from lissom.techniques.contract import check, grain, needed
from lissom.types import Recipe, Step

Plan = dict[str, list[Step]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Steps of one grain: those of each layer, in order, and all of them as the recipe has them."""

    grain: str
    plan: Plan
    steps: tuple[Step, ...]

    def on(self, names: Mapping[str, Any]) -> Plan:
        """The plan for some of the layers."""
        return {name: self.plan[name] for name in names if name in self.plan}

    def anew(self, names: Mapping[str, Any]) -> Plan:
        """The plan for the layers of these names: blocks may have gone, and others have their numbers."""
        found = {name: [step for step in self.steps if fnmatchcase(name, step.layers)] for name in names}
        return {name: steps for name, steps in found.items() if steps}


def phases(recipe: Recipe, names: Mapping[str, Any] | Sequence[str]) -> list[Phase]:
    """The phases of a recipe for the layers there are.

    Raises:
        RecipeError: a step is wrong in itself, or names no layer there is.
    """
    for step in recipe.steps:
        check(step)
    runs = [(kind, tuple(run)) for kind, run in groupby(recipe.steps, lambda step: grain(step.technique))]
    return [Phase(grain=kind, plan=match(Recipe(steps=run), names), steps=run) for kind, run in runs]


def match(recipe: Recipe, names: Mapping[str, Any] | Sequence[str]) -> dict[str, list[Step]]:
    """The steps of each layer, in order; layers that no step names are left out.

    Raises:
        RecipeError: a step is wrong in itself, or names no layer there is.
    """
    plan: dict[str, list[Step]] = {}
    for step in recipe.steps:
        check(step)
        named = [name for name in names if fnmatchcase(name, step.layers)]
        if not named:
            raise RecipeError(
                f"recipe: layers={step.layers!r} names no layer; there are {_some(names)}{_close(step.layers, names)}"
            )
        for name in named:
            plan.setdefault(name, []).append(step)
    return plan


def _some(names: Mapping[str, Any] | Sequence[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def _close(layers: str, names: Mapping[str, Any] | Sequence[str]) -> str:
    """The names most like a wildcard that matches none, with a star for every number."""
    starred = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names)
    close = get_close_matches(layers, starred, 2)
    return f"; the closest are {' and '.join(close)}" if close else ""


def wanted(plan: Mapping[str, Sequence[Step]]) -> dict[str, set[type[Statistic]]]:
    """The statistics that each layer's steps read."""
    return {name: {kind for step in steps for kind in needed(step)} for name, steps in plan.items()}
