"""How recipes of SparseML and llm-compressor are written: modifiers in lists by tag, or by name in groups of stages.

    modifiers:                            quant_stage:
      - !GMPruningModifier                  quant_modifiers:
          final_sparsity: 0.8                 GPTQModifier:
          params: __ALL_PRUNABLE__              scheme: W4A16

Both may be the front of a Markdown card, between lines of three dashes. A value `eval(name)` is that of a variable.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from lissom.errors import RecipeError

GROUP, STAGE = "modifiers", "_stage"
BESIDE = ("args", "metadata", "version", "variables")  # entries that hold no modifiers
VARIABLE = re.compile(r"(?:eval\((\w+)\)|\$\{?(\w+)\}?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A modifier of a file: where it stands, its class, and what it is given."""

    place: str
    name: str
    args: Mapping[str, Any]


def is_foreign(given: Any) -> bool:
    """Whether a recipe's mapping is one of modifiers."""
    return isinstance(given, Mapping) and any(
        str(key).endswith((GROUP, STAGE)) or key == "stages" for key in map(str, given)
    )


def read_text(text: str) -> Any:
    """What a file of YAML holds, with the tags of modifiers as their names; of a card its front.

    Raises:
        yaml.YAMLError: it is no YAML.
    """

    class Tagged(yaml.SafeLoader):
        """Reads nothing but data, as its parent does."""

    def named(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> dict[str, Any]:
        held = loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else {}
        return {suffix: held}

    Tagged.add_multi_constructor("!", named)
    front = text.lstrip()
    if front.startswith("---"):
        front = front.removeprefix("---").partition("\n---")[0]
    reader = Tagged(front)
    try:
        return reader.get_single_data()
    finally:
        reader.dispose()


def modifiers(given: Mapping[str, Any]) -> list[Asked]:
    """The modifiers of a recipe, in order.

    Raises:
        RecipeError: an entry holds none, and is none of those that may.
    """
    known = {str(name): value for name, value in given.items() if isinstance(value, str | int | float)}
    found = list(within(given, "", known))
    if not found:
        raise RecipeError("recipe: there is no modifier in it; nothing would be done")
    return found


def within(given: Mapping[str, Any], place: str, known: Mapping[str, Any]) -> Iterator[Asked]:
    """The modifiers of a stage, or of what holds stages."""
    for name, value in ((str(name), value) for name, value in given.items()):
        at = f"{place}.{name}".strip(".")
        if name.endswith(GROUP):
            yield from group(value, at, known)
        elif (name.endswith(STAGE) or name == "stages" or place == "stages") and isinstance(value, Mapping):
            own = {one: held for one, held in value.items() if isinstance(held, str | int | float)}
            yield from within(value, at, {**known, **own})
        elif isinstance(value, Mapping | list) and name not in BESIDE:
            raise RecipeError(f"recipe: {at} is no group of modifiers; such end in '_{GROUP}', and stages in '{STAGE}'")


def group(given: Any, place: str, known: Mapping[str, Any]) -> Iterator[Asked]:
    """The modifiers of a group: a mapping of them, or a list of mappings.

    Raises:
        RecipeError: it is neither.
    """
    lots = given if isinstance(given, list) else [given]
    for lot in lots:
        if not isinstance(lot, Mapping):
            raise RecipeError(f"recipe: {place} holds {lot!r}, which is no modifier with its arguments")
        for name, args in lot.items():
            if not isinstance(args or {}, Mapping):
                raise RecipeError(f"recipe: {place}: {name} is given {args!r}, which are no arguments by name")
            yield Asked(place=place, name=str(name), args={str(k): filled(v, known) for k, v in (args or {}).items()})


def filled(value: Any, known: Mapping[str, Any]) -> Any:
    """A value with its variables; one that is no variable's name, such as a sum, stays as it is written."""
    if isinstance(value, Mapping):
        return {name: filled(one, known) for name, one in value.items()}
    if isinstance(value, list):
        return [filled(one, known) for one in value]
    found = VARIABLE.fullmatch(value) if isinstance(value, str) else None
    return value if found is None else known.get(found[1] or found[2], value)
