"""Which layers a modifier means, and the fewest wildcards that name those and no others.

A target is the name of a module or of its parameter, `re:` and an expression that a name begins with, a class, or one
of the words for all layers.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from lissom.compress.couple import block_links
from lissom.errors import RecipeError
from lissom.models.families import FAMILIES, Link

EXPRESSION, PRUNABLE = "re:", "__ALL_PRUNABLE__"
ALL = {  # classes that the words stand for; an empty one is any
    "__ALL__": ("",),
    PRUNABLE: ("Linear", "Conv1d", "Conv2d", "Conv3d"),
    "__ALL_QUANTIZABLE__": ("Linear", "Conv2d", "Conv3d"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """A model's layers by the names that steps can give them; `sparse` says whether one has zeros enough for a mask."""

    model: nn.Module
    names: Sequence[str]
    sparse: Callable[[str], bool]

    def meant(self, targets: Any, ignore: Any = (), *, inside: bool = False) -> list[str]:
        """The layers that targets name and `ignore` does not; `inside` those, too, of modules that targets name.

        Raises:
            RecipeError: a target is no text, or names no layer there is.
        """
        wanted, unwanted = listed("targets", targets), listed("ignore", ignore)
        found = [name for name in self.names if any(self.names_it(one, name, inside) for one in wanted)]
        left = [name for name in found if not any(self.names_it(one, name, False) for one in unwanted)]
        if not left:
            raise RecipeError(f"recipe: targets {', '.join(wanted)} name no layer of {type(self.model).__name__}")
        return left

    def names_it(self, target: str, name: str, inside: bool) -> bool:
        """Whether a target names a layer, or with `inside` what the layer is in."""
        parts = name.split(".")
        places = [".".join(parts[:count]) for count in range(1, len(parts))] if inside else []
        return any(fits(target, place, self.model.get_submodule(place)) for place in (*places, name))

    def rank(self, targets: Any, name: str) -> int:
        """How closely targets name a layer: 0 by its name, 1 by an expression, 2 by its class, 3 not at all."""
        own = [one for one in listed("targets", targets) if self.names_it(one, name, False)]
        if name in own:
            return 0
        return min((1 if one.startswith(EXPRESSION) else 2 for one in own), default=3)

    def groups(self, found: Iterable[str]) -> list[str]:
        """Wildcards for layers: together they name each of them once, and no other."""
        return wildcards(list(found), self.names)

    def links(self) -> list[Link]:
        """How layers are coupled, where the model's family says it."""
        family = FAMILIES.get(getattr(getattr(self.model, "config", None), "model_type", ""))
        return [] if family is None else block_links(self.model, family)

    def sole(self, link: Link, links: Sequence[Link]) -> str | None:
        """A layer by which a step names this link and no other; None where there is none."""
        within = [name for other in links for name in (*other.makers, *other.readers)]
        return next((name for name in link.readers if name in self.names and within.count(name) == 1), None)


def listed(what: str, given: Any) -> list[str]:
    """One target, or several, as a list.

    Raises:
        RecipeError: it is neither.
    """
    found = [given] if isinstance(given, str) else list(given or ())
    for one in found:
        if not isinstance(one, str):
            raise RecipeError(f"recipe: {what}: {one!r} is no name, class or expression of layers")
    return found


def fits(target: str, name: str, module: nn.Module) -> bool:
    """Whether a target names a module by its name, its parameter's, its class, or one of the words for all."""
    if target in ALL:
        return any(one in ("", *classes(module)) for one in ALL[target])
    if target.startswith(EXPRESSION):
        try:
            begins = re.compile(target.removeprefix(EXPRESSION))
        except re.error as error:
            raise RecipeError(f"recipe: targets: {target!r} is no expression: {error}") from None
        return any(begins.match(one) for one in (name, f"{name}.weight"))
    return target in (name, f"{name}.weight", *classes(module))


def classes(module: nn.Module) -> list[str]:
    """The names of a module's class and of those above it."""
    return [one.__name__ for one in type(module).__mro__ if issubclass(one, nn.Module) and one is not nn.Module]


def by_prefix(targets: Sequence[str]) -> Callable[[str, nn.Module], bool]:
    """What SparseML's older quantization names: modules whose name begins so, or of exactly this class."""
    return lambda name, module: any(name.startswith(one) or type(module).__name__ == one for one in targets)


def wildcards(wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    """The fewest wildcards, as far as can be seen, that name each of some layers once and no other layer."""
    left, found = set(wanted), list[str]()
    for pattern, named in sorted(candidates(names).items(), key=lambda pair: (-len(pair[1]), pair[0])):
        if named and named <= left:
            found.append(pattern)
            left -= named
    return found + [name for name in names if name in left]


def candidates(names: Sequence[str]) -> dict[str, frozenset[str]]:
    """Wildcards that may serve, each with the layers that it names: beginnings of names, with a star for numbers."""
    shapes = {"*"}
    for name in names:
        starred = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name).split(".")
        literal = name.split(".")
        first = next((n for n, part in enumerate(literal) if part.isdecimal()), len(literal) - 1)
        shapes |= {".".join([*starred[:count], "*"]) for count in range(1, len(starred))}
        shapes |= {".".join(starred), f"*.{starred[-1]}", ".".join([*literal[: first + 1], "*"])}
    return {shape: frozenset(name for name in names if fnmatchcase(name, shape)) for shape in shapes}
