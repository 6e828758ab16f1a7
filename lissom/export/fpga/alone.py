"""What a layer takes on an FPGA by itself, counted as `circuit.py` counts a network: one multiplier for each weight."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from lissom.export.fpga.circuit import Resources, estimate, uncompressed
from lissom.export.fpga.fixed import FACTORS, SUMS, Codes, Fixed, Product
from lissom.export.grid import grid_of
from lissom.formats import Weight
from lissom.models.layers import weight_of

BITS, CLOCK_NS = 8, 5.0  # of numbers between layers, and of a cycle, where nothing else is asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a chip has of tables (LUT) and of DSPs, by its data sheet."""

    lut: int
    dsp: int

    def share(self, taken: Resources) -> float:
        """How much of it something takes: the share of its tables, and that of its DSPs."""
        return taken.lut / self.lut + taken.dsp / self.dsp


# Alveo U250: DS962. ZU7EV (ZCU104): DS891. Zynq 7020 (PYNQ-Z2): DS190.
PARTS: Mapping[str, Part] = {
    "xcu250-figd2104-2L-e": Part(lut=1_728_000, dsp=12_288),
    "xczu7ev-ffvc1156-2-e": Part(lut=230_400, dsp=1_728),
    "xc7z020clg400-1": Part(lut=53_200, dsp=220),
}


def taken(weight: Weight | None, layer: nn.Module, places: int) -> Resources:
    """What a layer with a weight of whole numbers takes that is run at so many places; without one, uncompressed."""
    shape = (weight_of(layer).shape[0], places)
    if weight is None:
        return uncompressed(stage(np.ones(weight_of(layer).shape, np.int64)), shape, 1)
    grid = grid_of(weight)
    assert grid is not None
    return estimate(stage(grid.codes.long().numpy()), Fixed(bits=BITS, point=0), shape, 1)


def stage(codes: Codes) -> Product:
    """A layer of these codes; where its points lie makes no difference to what it takes."""
    nothing = np.zeros(len(codes), np.int64)
    return Product(
        name="",
        codes=codes,
        sums=Fixed(bits=SUMS, point=0),
        factor=nothing,
        factor_type=Fixed(bits=FACTORS, point=0),
        bias=nothing,
        rectified=True,
        out=Fixed(bits=BITS, point=0),
    )
