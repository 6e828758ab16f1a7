"""Any module as what a search makes smaller."""

import copy
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lissom.artifact import load, save
from lissom.artifact.fingerprint import of_tensors
from lissom.artifact.module import stored_state
from lissom.calibrate import Batch, call
from lissom.calibrate.besides import read_besides
from lissom.calibrate.data import device_of, each, tensors
from lissom.calibrate.norms import norms_behind
from lissom.compress import compress_model
from lissom.compress.norms import remember
from lissom.engine.lower import lower
from lissom.errors import RecipeError
from lissom.evaluate import Metric
from lissom.evaluate.examples import pieces
from lissom.formats import Dense, freeze
from lissom.hardware.measure import once_ms
from lissom.models import compressible, replace, weight_of
from lissom.models.apart import apart, set_apart
from lissom.models.layers import leave
from lissom.progress import Tell
from lissom.search.bank import Bank, Choice
from lissom.search.channels import allocate_channels
from lissom.search.fill import fill_from_module
from lissom.search.forms import Steps, forms_of, kind_of, units_of_module
from lissom.search.latency import Run
from lissom.search.loads import Loads, loads_of_module
from lissom.search.subject import Subject, Trial, size
from lissom.search.yardstick import Yardstick
from lissom.types import Recipe

LOT = 64  # examples of a step of learning
TIMED = 16  # examples of the batch whose forward pass is timed
TOLD = 256  # examples that tell how far each form of a layer is; 128 misjudge more than they save (docs/log.md)


class ModuleSubject(Subject):
    """Any module; it stays as and where it is, and a copy is measured in the place of the target."""

    def __init__(
        self, model: nn.Module, example: Batch, place: torch.device, timed: Batch | None = None, *, rows: bool = False
    ) -> None:
        self.model = model if device_of(model).type == place.type else copy.deepcopy(model).to(place)
        self.example, self.rows = example, rows
        self.few = each(example if timed is None else timed, lambda part: part[:TIMED].to(place))
        self.examples = len(tensors(self.few)[0])
        self.original = copy.deepcopy(self.model).eval()
        whole = set_apart(self.original)
        leave(self.original, read_besides(whole, compressible(whole), self.few))
        self.nbytes = size(stored_state(self.original))
        self.weights = sum(parameter.numel() for parameter in model.parameters())

    @cached_property
    def units(self) -> dict[str, tuple[str, ...]]:  # type: ignore[override]
        """Those that are given the same."""
        return units_of_module(self.original, self.example)

    @cached_property
    def layers(self) -> dict[str, nn.Module]:  # type: ignore[override]
        """The layers with a matrix."""
        return compressible(apart(copy.deepcopy(self.original)))

    @property
    def kinds(self) -> dict[str, str]:  # type: ignore[override]
        """By names without numbers."""
        return {unit: kind_of(unit, self.layers) for unit in self.units}

    @property
    def forms(self) -> dict[str, dict[str, Steps]]:  # type: ignore[override]
        """Those for any layer."""
        return {name: forms_of(layer, rows=self.rows, normed=name in self.norms) for name, layer in self.layers.items()}

    @cached_property
    def norms(self) -> dict[str, str]:
        """The batch norms behind layers."""
        model = set_apart(self.original)
        return norms_behind(model, compressible(model), self.example)

    @property
    def beside(self) -> int:
        """Bytes of what is no matrix of a layer."""
        matrices = {id(layer.weight): layer.weight.nbytes for layer in self.layers.values()}
        return self.nbytes - sum(matrices.values())  # type: ignore[arg-type]

    def fingerprint(self) -> str:
        """Of all tensors."""
        return of_tensors(self.original.state_dict())

    def timing(self) -> list[Any]:
        """The module in words, and the shapes of its inputs."""
        return [repr(self.original), [list(part.shape) for part in tensors(self.few)]]

    def fill(self, bank: Bank, calibration: Batch, kind: Metric, max_ram: int | None, tell: Tell) -> None:
        """From one pass over the data, and one over a part of it for each form of each unit."""
        few = each(calibration, lambda part: part[:TOLD])
        yardstick = Yardstick(self.original, (), (), (few, kind))
        fill_from_module(bank, apart(copy.deepcopy(self.original)), calibration, yardstick, self.norms, tell)

    def compress(self, recipe: Recipe, calibration: Batch) -> Trial:
        """Compress a copy."""
        return self.trial(self.compressed(recipe, calibration), recipe)

    def compress_into(self, folder: Path, recipe: Recipe, calibration: Batch, choice: Choice) -> None:
        """Compress a copy and save it, without its graph."""
        save(self.compressed(recipe, calibration), folder, recipe=recipe.as_dict())

    def compressed(self, recipe: Recipe, calibration: Batch) -> nn.Module:
        """A compressed copy; where it learns, from a few examples at a time."""
        lots = list(pieces(calibration, LOT, self.model))
        return freeze(compress_model(self.model, lots, steps=recipe.steps)).eval()

    def narrower(self, share: float, calibration: Batch) -> Steps:
        """Fewer of the channels that nothing but layers reads."""
        lots = list(pieces(calibration, LOT, self.model))
        try:
            return tuple(allocate_channels(self.model, lots, sparsity=share))
        except RecipeError:
            return ()

    def reopened(self, folder: Path, recipe: Recipe) -> Trial:
        """A copy of the original with what is in the folder."""
        return self.trial(load(folder, model=self.original).to(device_of(self.original)), recipe)

    def assemble(self, bank: Bank, choice: Choice, name: str) -> Trial:
        """A copy with layers from the bank."""
        return self.trial(self.with_layers(bank, choice), bank.recipe(choice, name))

    def with_layers(self, bank: Bank, choice: Choice) -> nn.Module:
        """A copy with layers from the bank, not lowered."""
        model = apart(copy.deepcopy(self.original))
        layers = compressible(model)
        weights = {layer: bank.weight(layer, form) for layer, form in bank.by_layer(choice).items()}
        found = {layer: weight for layer, weight in weights.items() if weight is not None}
        for unit in choice:  # layers that share a matrix go on sharing it
            for layer in self.units[unit]:
                if layer in found and layers[layer].weight is layers[unit].weight:
                    found[layer] = found[unit]
        replace(model, found, layers, trainable=False)
        for layer, form in bank.by_layer(choice).items():
            if (told := bank.norm(layer, form)) is not None:
                remember(model.get_submodule(self.norms[layer]), told)
        return model.to(device_of(self.original))

    def trial(self, compressed: nn.Module, recipe: Recipe) -> Trial:
        """What is asked of a compressed copy."""

        def write(folder: Path, notes: Mapping[str, Any]) -> Path:
            return save(compressed, folder, example=self.example, recipe=recipe.as_dict(), **notes)

        return Trial(
            recipe=recipe,
            nbytes=size(stored_state(compressed)),
            open=lambda: lower(copy.deepcopy(compressed)),
            timed=lambda: self.forward(lower(copy.deepcopy(compressed))),
            write=write,
            weights=lambda: {name: weight_of(layer) for name, layer in compressible(compressed).items()},
        )

    def loads(self) -> Loads:
        """What each layer is given in one forward pass."""
        return loads_of_module(apart(copy.deepcopy(self.original)), self.few)

    def width(self, layer: str) -> int:
        """Bytes of a number of a layer."""
        held = weight_of(self.layers[layer])
        return held.values.element_size() if isinstance(held, Dense) else 4

    def timed(self) -> Run:
        """One forward pass on a few examples."""
        return self.forward(self.original)

    def forward(self, model: nn.Module) -> Run:
        """One forward pass of a model on a few examples."""

        def run() -> dict[str, float]:
            with torch.inference_mode():
                return {"call": once_ms(lambda: call(model, self.few), device_of(model).type)}

        return run
