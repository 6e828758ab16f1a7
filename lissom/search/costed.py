"""A model that is searched for a target that is not here: as it is elsewhere, but nothing is timed, all is costed.

What is timed elsewhere is a sum over its layers here (`costs.py`), each with what it is given in what would be timed
(`loads.py`). The same layers in the same forms always cost the same, so one round tells as much as many.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from lissom.artifact.fingerprint import of_json
from lissom.calibrate import Batch
from lissom.errors import DataError, ModelError
from lissom.evaluate import Metric
from lissom.export.fpga.chain import chain
from lissom.formats import Dense, Weight
from lissom.hardware import Target
from lissom.models import weight_of
from lissom.progress import Tell
from lissom.search.bank import Bank, Choice
from lissom.search.costs import Layer, costs_of
from lissom.search.forms import CACHE, ORIGINAL, SAFE, Steps
from lissom.search.latency import Costed, Latencies, Parts, Run
from lissom.search.loads import Loads
from lissom.search.subject import Subject, Trial
from lissom.types import Recipe


class CostedSubject(Subject):
    """Another subject, on a target that is not here; what is no layer of it, such as how keys are held, is left alone.

    Raises:
        ModelError: it is nothing that the target runs.
    """

    def __init__(self, inner: Subject, target: Target) -> None:
        self.inner, self.target, self.cost = inner, target, costs_of(target)
        if target.kind == "fpga":
            if inner.folder is not None:
                raise ModelError(f"target: {target} is given modules of a few layers, and this is a language model")
            chain(inner.original)  # which says what cannot be built
        self.nbytes, self.weights, self.folder = inner.nbytes, inner.weights, inner.folder
        self.layers, self.rows, self.examples = inner.layers, inner.rows, inner.examples
        self.units = {unit: layers for unit, layers in inner.units.items() if unit != CACHE}
        self.kinds = {unit: kind for unit, kind in inner.kinds.items() if unit != CACHE}
        self.forms: dict[str, dict[str, Steps]] = {name: own for name, own in inner.forms.items() if name != CACHE}
        self._known: dict[tuple[str, str], Parts | DataError] = {}

    @property
    def original(self) -> nn.Module:  # type: ignore[override]
        """As it was given."""
        return self.inner.original

    @property
    def beside(self) -> int:
        """Bytes of what is no matrix of a layer."""
        return self.inner.beside

    @cached_property
    def given(self) -> Loads:
        """What each layer is given."""
        return self.inner.loads()

    def loads(self) -> Loads:
        """What each layer is given."""
        return self.given

    def fingerprint(self) -> str:
        """Of all weights."""
        return self.inner.fingerprint()

    def timing(self) -> list[Any]:
        """What would be run."""
        return self.inner.timing()

    def fill(self, bank: Bank, calibration: Batch, kind: Metric, max_ram: int | None, tell: Tell) -> None:
        """As elsewhere: a form is the same on all targets."""
        self.inner.fill(bank, calibration, kind, max_ram, tell)

    def compress(self, recipe: Recipe, calibration: Batch) -> Trial:
        """Compress it, if the target runs what comes of it."""
        return self.costed(self.inner.compress(recipe, calibration))

    def compress_into(self, folder: Path, recipe: Recipe, calibration: Batch, choice: Choice) -> None:
        """Compress it into a folder."""
        self.inner.compress_into(folder, recipe, calibration, choice)

    def reopened(self, folder: Path, recipe: Recipe) -> Trial:
        """What was compressed into a folder."""
        return self.costed(self.inner.reopened(folder, recipe))

    def assemble(self, bank: Bank, choice: Choice, name: str) -> Trial:
        """Put it together; its recipe's name says that it was costed, and for what."""
        trial = self.inner.assemble(bank, choice, f"{name}, costed for {self.target}" if name else "")
        return replace(trial, timed=lambda: self.run(bank, choice))

    def costed(self, trial: Trial) -> Trial:
        """A trial that is costed by the weights that it has.

        Raises:
            DataError: one of them becomes another on the target.
        """
        run = Costed(parts=self.total(trial.weights()))
        named = replace(trial.recipe, name=f"{trial.recipe.name}, costed for {self.target}")
        return replace(trial, recipe=named, timed=lambda: run)

    def timed(self) -> Run:
        """What the original costs."""
        return Costed(parts=self.total(dict.fromkeys(self.given)))

    def run(self, bank: Bank, choice: Choice) -> Run:
        """What a choice costs; it is not put together for that."""
        forms = bank.by_layer(choice)
        return Costed(parts=added(self.of_layer(bank, layer, form) for layer, form in forms.items()))

    def latencies(self, bank: Bank) -> Latencies:
        """The table: what a form costs beside the safe one, the mean over the units of a kind."""
        base = added(self.of_unit(bank, unit, SAFE) for unit in bank.units)
        table: dict[str, dict[str, list[Parts]]] = {}
        for unit, forms in bank.options.items():
            own, safe = table.setdefault(self.kinds[unit], {}), self.of_unit(bank, unit, SAFE)
            for form in (form for form in forms if form != SAFE and not self.refusal(bank, unit, form)):
                parts = self.of_unit(bank, unit, form)
                own.setdefault(form, []).append({part: ms - safe[part] for part, ms in parts.items()})
        means = {kind: {form: mean(found) for form, found in own.items()} for kind, own in table.items()}
        return Latencies(base=base, added=means)

    def refused(self, bank: Bank) -> dict[tuple[str, str], str]:
        """The forms of kinds of units that do not run there as they are, and why."""
        found = {
            (self.kinds[unit], form): self.refusal(bank, unit, form)
            for unit, forms in bank.options.items()
            for form in forms
        }
        return {place: reason for place, reason in found.items() if reason}

    def refusal(self, bank: Bank, unit: str, form: str) -> str:
        """Why a unit in a form does not run there as it is; empty where it does.

        The original is left as it is only where that runs too.
        """
        if form == ORIGINAL:
            return "dense would become 8 bits with a scale for each row" if self.target.kind == "fpga" else ""
        try:
            self.of_unit(bank, unit, form)
        except DataError as error:
            return str(error)
        return ""

    def of_unit(self, bank: Bank, unit: str, form: str) -> Parts:
        """What a unit in a form costs.

        Raises:
            DataError: it is refused.
        """
        return added(self.of_layer(bank, layer, form) for layer in bank.units[unit])

    def of_layer(self, bank: Bank, layer: str, form: str) -> Parts:
        """What a layer in a form costs; layers of one kind with one load cost alike where values do not matter.

        Raises:
            DataError: it is refused.
        """
        kind = layer if self.target.kind == "fpga" else f"{self.kinds_of_layers[layer]} {self.given.get(layer)}"
        key = (kind, form)
        if key not in self._known:
            try:
                self._known[key] = self.looked_up(bank, layer, form, key)
            except DataError as error:
                self._known[key] = error
        found = self._known[key]
        if isinstance(found, DataError):
            raise found
        return found

    def looked_up(self, bank: Bank, layer: str, form: str, key: tuple[str, str]) -> Parts:
        """The same, from the bank where it had to be compiled, which takes a while.

        Raises:
            DataError: it is refused.
        """
        if not self.target.compiled:
            return self.of_weight(layer, bank.weight(layer, form))
        name = f"cost {of_json([str(self.target), self.target.how, *key])[:24]}"
        return bank.known(name, lambda: dict(self.of_weight(layer, bank.weight(layer, form))))

    @cached_property
    def kinds_of_layers(self) -> dict[str, str]:
        """The kind of each layer's unit, and the layer's own shape."""
        kinds = {layer: self.kinds[unit] for unit, layers in self.units.items() for layer in layers}
        return {layer: f"{kind} {weight_of(self.layers[layer]).shape}" for layer, kind in kinds.items()}

    def total(self, weights: Mapping[str, Weight | None]) -> Parts:
        """What some weights cost together.

        Raises:
            DataError: one is refused; the message names the layer.
        """
        layer = ""
        try:
            return added([self.of_weight(layer := own, weight) for own, weight in weights.items() if own in self.given])
        except DataError as error:
            raise DataError(f"{layer}: {error} on {self.target}") from None

    def of_weight(self, layer: str, weight: Weight | None) -> Parts:
        """What a layer costs with a weight.

        Raises:
            DataError: it is refused.
        """
        own = weight_of(self.layers[layer])
        if weight is None and not isinstance(own, Dense):
            weight = own  # which was compressed before
        given = Layer(
            layer=self.layers[layer],
            weight=weight,
            width=self.width(layer),
            load=self.given.get(layer, {}),
            examples=self.examples,
        )
        return self.cost(given)

    def width(self, layer: str) -> int:
        """Bytes of a number that is no integer; a TPU computes language models in 16 bits."""
        most = 2 if self.target.kind == "tpu" and self.folder is not None else 4
        return min(most, max(2, self.inner.width(layer)))


def added(parts: Iterable[Parts]) -> dict[str, float]:
    """Sums, part by part."""
    found: dict[str, float] = {}
    for own in parts:
        for part, ms in own.items():
            found[part] = found.get(part, 0.0) + ms
    return found


def mean(found: list[Parts]) -> dict[str, float]:
    """Means, part by part."""
    return {part: ms / len(found) for part, ms in added(found).items()}
