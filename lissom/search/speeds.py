"""Speeds: how fast a layer is in each form on a target, measured by turns where that is here, else costed."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from lissom.compress.layers import steps_on
from lissom.engine.lower import lower
from lissom.errors import DataError
from lissom.estimate import Estimate
from lissom.formats import Dense, Weight, wrap
from lissom.hardware import Target, interleave
from lissom.hardware.ways import way_of
from lissom.search.costs import AREA, LATENCY, Layer, bits_of, costs_of
from lissom.search.forms import forms_of
from lissom.search.loads import Use

SIZES = {"fpga": 64}  # outputs and inputs of the layer; a circuit has a multiplier for each weight
SIZE, CALL = 1024, "call"
WIDTH = 2  # bytes of a number of the model whose layers are costed
UNCOMPRESSED = "16 bits and a DSP for each product, to compare with; it becomes 8 bits"


@dataclass(frozen=True, slots=True, kw_only=True)
class FormSpeed:
    """A layer in a form: what runs it, its bits a weight as they are there, and the milliseconds of a call, measured or
    costed.

    `area` is its share of a chip that is made for it; `refused` says why it does not run there as it is.
    """

    form: str
    kernel: str
    bits: float
    latency: Estimate | float | None = None
    area: float | None = None
    refused: str = ""

    @property
    def ms(self) -> float | None:
        """The milliseconds alone."""
        return self.latency.value if isinstance(self.latency, Estimate) else self.latency


def speeds(target: Target, *, size: int | None = None, rows: int = 1, rounds: int = 15) -> list[FormSpeed]:
    """The forms of a square layer on a target, made without data, given so many rows; first the layer as it is."""
    size = size or SIZES.get(target.kind, SIZE)
    layer = nn.Linear(size, size, bias=False)
    layer.weight.data = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    dense = Dense(values=layer.weight.detach())
    forms = forms_of(layer, rows=target.kind == "fpga")
    weights = {form: steps_on("layer", dense, steps, None, dense) for form, steps in forms.items()}
    if target.measured:
        return measured(target, layer, weights, rows, rounds)
    return [costed(target, layer, form, weight, rows) for form, weight in weights.items()]


def measured(target: Target, layer: nn.Module, weights: dict[str, Weight], rows: int, rounds: int) -> list[FormSpeed]:
    """All forms by turns."""
    x = torch.randn(rows, weights[next(iter(weights))].shape[1], device=target.place)
    models = {form: lower(nn.Sequential(made(layer, weight))).to(target.place) for form, weight in weights.items()}
    with torch.inference_mode():
        found = interleave(
            {form: partial(model, x) for form, model in models.items()}, rounds=rounds, target=target.kind
        )
    return [
        FormSpeed(form=form, kernel=kernel_of(target, weight), bits=weight.bits_per_weight, latency=found[form])
        for form, weight in weights.items()
    ]


def made(layer: nn.Module, weight: Weight) -> nn.Module:
    """The layer with a weight."""
    return layer if isinstance(weight, Dense) else wrap(layer, weight)


def costed(target: Target, layer: nn.Module, form: str, weight: Weight, rows: int) -> FormSpeed:
    """One form, of a model in 16 bits."""
    held = None if isinstance(weight, Dense) else weight
    kernel = UNCOMPRESSED if held is None and target.kind == "fpga" else kernel_of(target, weight)
    told: dict[str, Any] = {"form": form, "kernel": kernel}
    given = Layer(layer=layer, weight=held, width=WIDTH, load={CALL: [Use(rows=rows)]})
    try:
        parts, bits = costs_of(target)(given), bits_of(target, given)
    except DataError as error:
        return FormSpeed(**told, bits=weight.bits_per_weight, refused=str(error))
    return FormSpeed(**told, bits=bits, latency=parts.get(LATENCY, parts.get(CALL)), area=parts.get(AREA))


def kernel_of(target: Target, weight: Weight) -> str:
    """What runs a weight, by the table of targets."""
    return way_of(target.kind, weight.spec()).told
