"""Weights of convolutions as the steps of a program read them: vectors of outputs, entry by entry of a patch.

An entry is what meets a weight at once: four channels that are integers of a byte, or one that is a float. Those that
lie side by side in what a block of rows sees are a stretch.

Shapes: o outputs, v those with what fills up vectors, p parts of a patch that have a scale each, e entries of a patch,
n weights of an entry.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lissom.engine.kernels.conv import PanelConv
from lissom.engine.kernels.panels import EXACT, by_output
from lissom.engine.maps import Conv, Scale
from lissom.errors import ModelError

VECTOR, QUARTET, FLOAT = 16, 4, 4  # outputs; channels of an entry of integers; bytes


class Inputs(IntEnum):
    """What a convolution reads, likewise."""

    INTEGERS, FLOATS, DEEP = range(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A convolution's weight as the library reads it."""

    inputs: Inputs
    size: tuple[int, int]
    groups: int
    channels: int  # of a group
    parts: int
    entries: int  # of a part of one tap
    weights: Tensor
    unit: Float[Tensor, " o"]
    bias: Float[Tensor, " o"]
    sums: Int[Tensor, "p v"] | None = None
    scale: Float[Tensor, "p v"] | None = None
    levels: int = 0
    whole: bool = False
    largest: int = 0  # magnitude of an integer

    def stretches(self, lanes: int, columns: int, dilation: tuple[int, int]) -> list[tuple[int, int]]:
        """Where stretches begin, in `columns` pixels of so many lanes, and of how many entries: part by part."""
        pixel = lanes * (1 if self.inputs == Inputs.INTEGERS else FLOAT)
        taps = [
            (y * dilation[0] * columns + x * dilation[1]) * pixel
            for y in range(self.size[0])
            for x in range(self.size[1])
        ]
        own = self.channels // self.parts * (pixel // lanes)
        found: list[tuple[int, int]] = []
        for part in range(self.parts):
            end = -1
            for begin in (part * own + tap for tap in taps):
                before = found.pop() if begin == end else (begin, 0)
                found.append((before[0], before[1] + self.entries))
                end = begin + self.entries * QUARTET
        return found


def fit(whether: bool, reason: str) -> None:
    """Refuse what a program cannot run."""
    if not whether:
        raise ModelError(f"engine: {reason}; it runs in PyTorch only")


def rescaled(
    unit: Float[Tensor, " o"], bias: Float[Tensor, " o"], scales: Sequence[Scale]
) -> tuple[Float[Tensor, " o"], Float[Tensor, " o"]]:
    """What norms make of a factor and a shift."""
    for scale in scales:
        fit(len(scale.factor) == len(unit), f"a norm of {len(scale.factor)} channels is given {len(unit)}")
        unit, bias = unit * scale.factor, bias * scale.factor + scale.shift
    return unit, bias


def packed(conv: Conv, scales: Sequence[Scale]) -> Packed:
    """A convolution, and the norms behind it."""
    return integers(conv.panels, scales) if conv.panels is not None else floats(conv, scales)


def integers(layer: PanelConv, scales: Sequence[Scale]) -> Packed:
    """A convolution on panels: its whole numbers, a byte each."""
    panels, (outputs, inputs) = layer.panels, layer.panels.shape
    parts, taps = inputs // panels.group, math.prod(layer.size)
    fit(panels.group % taps == 0, "groups that share a scale cut channels")
    fit(panels.wide <= EXACT, f"{panels.wide} inputs share a scale")
    values = panels.close(panels.whole(slice(None)))[:outputs, layer.order.argsort()]
    fit(bool(values.min() >= -128 and values.max() <= 127), "weights less their zeros have more than 8 bits")
    kernel = values.unflatten(1, (parts, -1, *layer.size))  # o p c y x
    entries = F.pad(kernel.movedim(2, -1), (0, -kernel.shape[2] % QUARTET))
    bias = torch.zeros(outputs) if panels.bias is None else by_output(panels.bias)[:outputs, 0]
    unit, bias = rescaled(by_output(panels.unit)[:outputs, 0], bias, scales)
    return Packed(
        inputs=Inputs.INTEGERS,
        size=layer.size,
        groups=layer.groups,
        channels=layer.channels // layer.groups,
        parts=parts,
        entries=entries.shape[-1] // QUARTET,
        weights=by_vector(entries.reshape(outputs, -1, QUARTET).to(torch.int8), layer.groups),
        unit=unit,
        bias=bias,
        sums=by_part(values.unflatten(1, (parts, -1)).sum(2)).int(),
        scale=by_part(by_output(panels.scale)[:outputs].float()),
        levels=panels.levels,
        largest=int(values.abs().max()),
        whole=layer.whole,
    )


def floats(conv: Conv, scales: Sequence[Scale]) -> Packed:
    """A convolution of floats; groups whose outputs fill no vectors are taken together, with zeros between them."""
    assert conv.weight is not None
    weight, groups = conv.weight, conv.groups
    outputs, channels, *size = weight.shape
    deep = groups > 1 and groups == outputs and channels == 1
    if groups > 1 and not deep:
        fits = [n for n in range(1, groups) if groups % n == 0 and outputs // groups * n % VECTOR == 0]
        together = min(fits, default=groups)
        spread = weight.new_zeros(outputs, together, channels, *size)
        spread[torch.arange(outputs), torch.arange(outputs) // (outputs // groups) % together] = weight
        weight, groups = spread.flatten(1, 2), groups // together
    unit, bias = torch.ones(outputs), torch.zeros(outputs) if conv.bias is None else conv.bias
    unit, bias = rescaled(unit, bias, scales)
    return Packed(
        inputs=Inputs.DEEP if deep else Inputs.FLOATS,
        size=(size[0], size[1]),
        groups=groups,
        channels=weight.shape[1],
        parts=1,
        entries=weight.shape[1],
        weights=by_vector(weight.movedim(1, -1).reshape(outputs, -1, 1), outputs if deep else groups),
        unit=unit,
        bias=bias,
    )


def by_vector(entries: Tensor, groups: int) -> Tensor:
    """(o, e, n) as vectors of outputs: two of a group together, entry by entry, and an odd one alone."""
    filled = F.pad(entries, (0, 0, 0, 0, 0, -len(entries) % VECTOR))
    vectors = filled.unflatten(0, (-1, VECTOR))
    groups = min(groups, len(vectors))
    own = vectors.unflatten(0, (groups, -1))  # g v l e n
    pairs = own[:, : own.shape[1] // 2 * 2].unflatten(1, (-1, 2)).movedim(4, 2).flatten(1)
    alone = own[:, own.shape[1] // 2 * 2 :].movedim(3, 2).flatten(1)
    return torch.cat([pairs, alone], 1).contiguous()


def by_part(values: Float[Tensor, "o p"]) -> Float[Tensor, "p v"]:
    """Outputs of a part together, filled up to whole vectors."""
    return F.pad(values.T, (0, -len(values) % VECTOR)).contiguous()
