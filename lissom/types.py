"""The nouns a user says: a step, a recipe, a budget."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lissom.errors import RecipeError

Knob = int | float | str | bool
SHOWN = {"layers", "technique"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One technique applied to the layers whose names match a shell wildcard.

    `layers` is matched against the dotted module name (`model.layers.0.mlp.up_proj`); `knobs` are the keyword
    arguments of the technique's function.
    """

    technique: str
    layers: str = "*"
    knobs: Mapping[str, Knob] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The step as it stands in a recipe file."""
        return {"layers": self.layers, "technique": self.technique, **self.knobs}

    @classmethod
    def of(cls, given: Any) -> "Step":
        """A step from a Step or from the mapping of a recipe file.

        Raises:
            RecipeError: it is no mapping, or it names no technique.
        """
        if isinstance(given, Step):
            return given
        if not isinstance(given, Mapping) or not isinstance(given.get("technique"), str):
            raise RecipeError(f"recipe: {given!r} is no step; write {{layers: '*', technique: gptq, bits: 4}}")
        layers = given.get("layers", "*")
        if not isinstance(layers, str):
            raise RecipeError(
                f"recipe: layers={layers!r} must be one shell wildcard over layer names, such as '*.mlp.*'"
            )
        knobs = {str(name): value for name, value in given.items() if name not in SHOWN}
        return cls(technique=given["technique"], layers=layers, knobs=knobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Steps, applied in order; an empty recipe leaves the model as it is."""

    steps: tuple[Step, ...] = ()
    name: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The recipe as it stands in a file."""
        named = {"name": self.name} if self.name else {}
        return {**named, "steps": [step.as_dict() for step in self.steps]}

    @classmethod
    def of(cls, given: Any) -> "Recipe":
        """A recipe from a Recipe, a list of steps, or the mapping of a recipe file.

        Raises:
            RecipeError: there is no list of steps in it.
        """
        if isinstance(given, Recipe):
            return given
        name, steps = "", given
        if isinstance(given, Mapping):
            unknown = set(given) - {"name", "steps"}
            if unknown:
                raise RecipeError(f"recipe: unknown entry {sorted(unknown)[0]!r}; a recipe has name and steps")
            name, steps = str(given.get("name", "")), given.get("steps")
        if not isinstance(steps, list | tuple):
            raise RecipeError(f"recipe: found {type(steps).__name__} where a list called 'steps' is needed")
        return cls(name=name, steps=tuple(Step.of(step) for step in steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The drop in quality that the owner accepts, and how sure the proof must be.

    `max_drop` is a fraction: 0.01 is one point of accuracy, or one percent of perplexity; with `relative` it is one of
    the original's own score, 0.9 points of an accuracy of 90 % (a drop in perplexity is relative always). `confidence`
    is the probability, over the choice of examples, that a model which drops more is not passed.
    """

    max_drop: float = 0.01
    confidence: float = 0.95
    relative: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < 1:
            raise RecipeError(
                f"budget: max_drop={self.max_drop} must be a fraction from 0 up to 1, such as 0.01 for 1 %"
            )
        if not 0.5 <= self.confidence < 1:
            raise RecipeError(f"budget: confidence={self.confidence} must be from 0.5 up to 1, such as 0.95")
