"""What a network in fixed point takes on an FPGA, estimated by counting: no tool of a vendor has been asked.

A table (LUT) is counted for each bit of an adder, as in a carry chain: it has as many as go in and two, for what lies
below is wire. With a reuse factor of 1 weights are constants: zeros cost nothing, a product with a constant is an
addition for each digit but one of its shortest form of signed digits (1, 2, 4 and their negatives: none), and the
products of an output are added in a tree. With a factor of R each multiplier serves R weights, which lie in memory: a
DSP where both sides have ten bits or more, as Vivado is taken to choose, else as many tables as the product of the bits
of both. A convolution has its multipliers once and goes from place to place. Scales are a product of 13 by 12 bits
each, a DSP.

Cycles: R for each place, and the depth of the pipeline: a cycle for the product, one for two levels of the tree, and
one each for scaling and rounding. A real design differs: synthesis shares, retimes, and adds control.

Uncompressed is the same network with every weight of 16 bits and inputs of 16: a DSP for each product, no scales.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lissom.export.fpga.fixed import FACTORS, SUMS, Codes, Fixed, Largest, Network, Product, Stage

WIDE, BLOCK, DENSE = 10, 36 * 1024, 16  # bits that make a DSP; of a block RAM; of what is uncompressed
COUNTS = ("weights", "weight_bits", "multipliers", "adders", "lut", "dsp", "bram", "cycles")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a layer takes: multipliers that are more than wires, adders, and the parts of the chip."""

    weights: int = 0
    weight_bits: int = 0
    multipliers: int = 0
    adders: int = 0
    lut: int = 0
    dsp: int = 0
    bram: int = 0
    cycles: int = 0


def digits(codes: Codes) -> Codes:
    """How many digits of 1 and -1 the shortest form of each code has."""
    size = np.abs(codes)
    spread: Codes = np.asarray(np.bitwise_count(size ^ (3 * size))).astype(np.int64)
    return spread


def bits_of(codes: Codes) -> int:
    """Bits that a code takes: one where there are 1 and -1 only."""
    if set(np.unique(codes)) <= {-1, 1}:
        return 1
    return max(int(codes.max()).bit_length(), (-1 - int(codes.min())).bit_length() if codes.min() < 0 else 0) + 1


def sums_type(codes: Codes, entry: Fixed) -> Fixed:
    """The type in which the sums of a layer are exact whatever comes in."""
    most = int(np.abs(codes).reshape(len(codes), -1).sum(1).max()) * max(entry.high, -entry.low)
    return Fixed(bits=most.bit_length() + 1, point=entry.point)


def estimate(stage: Stage, entry: Fixed, after: tuple[int, ...], reuse: int) -> Resources:
    """What a stage takes; `entry` is the type that comes in, `after` the shape that goes out."""
    if isinstance(stage, Largest):
        compared = math.prod(after) * (math.prod(stage.size) - 1)
        return Resources(adders=compared, lut=2 * compared * entry.bits, cycles=1)
    if not isinstance(stage, Product):
        return Resources()
    rows, bits = stage.codes.reshape(len(stage.codes), -1), bits_of(stage.codes)
    kept, wide = rows != 0, entry.bits + bits + 2
    fan_in = kept.sum(1)
    if reuse == 1:
        count, adders = int((digits(rows) > 1).sum()), int(np.maximum(fan_in - 1, 0).sum())
        within = np.maximum(digits(rows) - 1, 0)
        lut, dsp, bram = int(within.sum()) * (entry.bits + 2) + adders * wide, 0, 0
        adders += int(within.sum())
    else:
        count = math.ceil(int(kept.sum()) / reuse)
        is_dsp = min(bits, entry.bits) >= WIDE
        lut, dsp, adders = (0 if is_dsp else count * bits * entry.bits) + count * wide, is_dsp * count, count
        bram = math.ceil(rows.size * bits / BLOCK)
    scales = math.ceil(len(rows) / reuse)
    return Resources(
        weights=int(kept.sum()),
        weight_bits=int(kept.sum()) * bits,
        multipliers=count,
        adders=adders,
        lut=lut + len(rows) * (SUMS + FACTORS + stage.out.bits),
        dsp=dsp + scales,
        bram=bram,
        cycles=cycles(int(fan_in.max()), places(after), reuse) + 2,
    )


def uncompressed(stage: Stage, after: tuple[int, ...], reuse: int) -> Resources:
    """What the stage takes with weights and inputs of 16 bits."""
    entry = Fixed(bits=DENSE, point=0)
    if not isinstance(stage, Product):
        return estimate(stage, entry, after, reuse)
    o, i = stage.codes.reshape(len(stage.codes), -1).shape
    count, wide = math.ceil(o * i / reuse), 2 * DENSE + 2
    return Resources(
        weights=o * i,
        weight_bits=o * i * DENSE,
        multipliers=count,
        adders=o * (i - 1) if reuse == 1 else count,
        lut=(o * (i - 1) if reuse == 1 else count) * wide + o * DENSE,
        dsp=count,
        bram=0 if reuse == 1 else math.ceil(o * i * DENSE / BLOCK),
        cycles=cycles(i, places(after), reuse) + 1,
    )


def places(shape: tuple[int, ...]) -> int:
    """Places of a map, 1 of a row."""
    return math.prod(shape[1:])


def cycles(fan_in: int, places: int, reuse: int) -> int:
    """From the first input to the last sum."""
    return places * reuse + math.ceil(math.ceil(math.log2(max(fan_in, 1))) / 2)


def total(parts: list[Resources]) -> dict[str, int]:
    """All of them together."""
    return {name: sum(getattr(part, name) for part in parts) for name in COUNTS}


def table(network: Network, forms: Mapping[str, str], reuse: Mapping[str, int]) -> dict[str, Any]:
    """The estimates of a network: a row for each stage with what it is, and totals, beside the uncompressed.

    `forms` has the names of the forms of layers, `reuse` how many products share a multiplier where it is not one.
    """
    rows, own, other, kind = list[dict[str, Any]](), list[Resources](), list[Resources](), network.entry
    for stage, (before, after) in zip(network.stages, network.maps(), strict=True):
        often = reuse.get(stage.name, 1)
        own.append(estimate(stage, kind, after, often))
        other.append(uncompressed(stage, after, often))
        told: dict[str, Any] = {"layer": stage.name, "kind": type(stage).__name__.lower()}
        told |= {"in": list(before), "out": list(after), "in_type": str(kind), "out_type": str(stage.out)}
        if isinstance(stage, Product):
            told |= {"form": forms.get(stage.name, "ones"), "bits": bits_of(stage.codes), "reuse": often}
            told |= {"sums_type": str(stage.sums)}
        rows.append(told | {name: getattr(own[-1], name) for name in COUNTS})
        kind = stage.out
    return {"layers": rows, "total": total(own), "uncompressed": total(other)}
