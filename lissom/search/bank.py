"""The bank: every layer in every form that it may take, made once and kept on disk, and what each form costs.

The search chooses among what is in it, a model is put together from it without calibrating again, and a search that was
cut short goes on from what is in it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lissom.artifact.journal import Journal
from lissom.errors import RecipeError
from lissom.formats import Weight, read_weight
from lissom.search.forms import Steps
from lissom.search.sensitivity import Option
from lissom.techniques import NORM
from lissom.techniques.recover.norms import Norm
from lissom.types import Recipe

MEAN, VARIANCE = "norm mean", "norm variance"  # how its tensors are called in the bank
Choice = Mapping[str, str]  # the form of each unit, by its name


class Bank:
    """What became of the layers.

    Args:
        journal: where it is kept.
        units: which layers take the same form, by the name of the first.
        forms: the steps of each form of each layer.
    """

    def __init__(
        self, journal: Journal, units: Mapping[str, tuple[str, ...]], forms: Mapping[str, Mapping[str, Steps]]
    ) -> None:
        self.journal, self.units, self.forms = journal, units, forms
        self._read: dict[str, dict[str, Any]] = {}

    def record(self, name: str) -> dict[str, Any]:
        """The record of a piece that is in it."""
        if name not in self._read:
            self._read[name] = self.journal.read(name)
        return self._read[name]

    def known(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The record of a piece, made now if it is not in it."""
        if not self.journal.has(name):
            self.journal.keep(name, make())
        return self.record(name)

    def folder(self, name: str, record: Mapping[str, Any], make: Callable[[Path], object]) -> Path:
        """Where a piece is that is a folder, made now and written down with its record if it is not in it."""
        if not self.journal.has(name):
            self.journal.keep_folder(name, record, make)
        return self.journal.place(name)

    def missing(self) -> dict[str, list[str]]:
        """The forms of each layer that are not in it yet."""
        found = {layer: [f for f in own if not self.journal.has(f"{layer} {f}")] for layer, own in self.forms.items()}
        return {layer: forms for layer, forms in found.items() if forms}

    def keep(
        self, layer: str, form: str, option: Option, weight: Weight | None, norm: Norm | None = None, **told: float
    ) -> None:
        """Write down one form, the norm behind it, and what else is told; what stays as it is needs no second copy."""
        weight = weight if option.steps else None
        record = {**option.as_dict(), **told, "spec": None if weight is None else weight.spec()}
        own = {} if norm is None else {MEAN: norm.mean, VARIANCE: norm.variance}
        self.journal.keep(f"{layer} {form}", record, None if weight is None else {**weight.parts(), **own})

    def refuse(self, layer: str, form: str, reason: RecipeError) -> None:
        """Write down that a form does not suit a layer."""
        self.journal.keep(f"{layer} {form}", {"refused": str(reason)})

    def option(self, layer: str, form: str) -> Option:
        """What a form costs."""
        return Option.of(self.record(f"{layer} {form}"))

    def weight(self, layer: str, form: str) -> Weight | None:
        """A layer in a form; None where it stays as it is."""
        spec = self.record(f"{layer} {form}")["spec"]
        if spec is None:
            return None
        parts = self.journal.tensors(f"{layer} {form}")
        return read_weight(spec, {name: part for name, part in parts.items() if name not in (MEAN, VARIANCE)})

    def norm(self, layer: str, form: str) -> Norm | None:
        """What the norm behind a layer in a form remembers; None where there is none, or it stays as it is."""
        if self.record(f"{layer} {form}")["spec"] is None:
            return None
        parts = self.journal.tensors(f"{layer} {form}")
        return Norm(mean=parts[MEAN], variance=parts[VARIANCE]) if MEAN in parts else None

    @cached_property
    def options(self) -> dict[str, dict[str, Option]]:
        """The forms that all layers of a unit can take, with what they cost together; the first ones are the safest."""
        return {unit: dict(self.together(layers)) for unit, layers in self.units.items()}

    def together(self, layers: tuple[str, ...]) -> Iterator[tuple[str, Option]]:
        """The forms of some layers."""
        for form, steps in self.forms[layers[0]].items():
            if all(form in self.forms[layer] for layer in layers):
                records = [self.record(f"{layer} {form}") for layer in layers]
                if not any("refused" in record for record in records):
                    own = [Option.of(record) for record in records]
                    nbytes, kl = sum(option.nbytes for option in own), sum(option.kl for option in own)
                    yield form, Option(steps=steps, nbytes=nbytes, error=max(o.error for o in own), kl=kl)

    def by_layer(self, choice: Choice) -> dict[str, str]:
        """The form of each layer."""
        return {layer: form for unit, form in choice.items() for layer in self.units[unit]}

    def recipe(self, choice: Choice, name: str) -> Recipe:
        """The steps that would make a choice anew."""
        forms = self.by_layer(choice)
        steps = [replace(step, layers=layer) for layer, form in forms.items() for step in self.forms[layer][form]]
        return Recipe(name=name, steps=tuple(sorted(steps, key=lambda step: step.technique in NORM)))
