"""Weights that compute in PyTorch's plain operators, which a compiler can follow; their integers stay integers.

What is stored is what is multiplied: codes in int8, which a compiler that has four bits may take as such, beside scales
in floating point; nothing is decoded but as it is used.

Shapes: o outputs, i inputs, g groups of a row, n rows of input.
"""

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.export.grid import Grid, grid_of
from lissom.formats import CompressedConv, CompressedLayer, Dense, Dynamic, LowRank, Masked, Sum, Turned, Weight
from lissom.formats.dynamic import integers, rounded
from lissom.formats.linear import scale_of
from lissom.formats.turned import hadamard
from lissom.models.families import put
from lissom.models.layers import weight_of

NARROW, WIDE = "int4", "int8"  # the last word of the names of tensors of integers


class Plain(nn.Module):
    """What a layer asks of its weight."""

    def activate(self, x: Tensor) -> Tensor:
        """The input as it is."""
        return x

    def linear(self, x: Tensor) -> Tensor:
        """x Wᵀ."""
        return F.linear(x, self().to(x.dtype))

    def look_up(self, index: Tensor) -> Tensor:
        """Some rows."""
        rows: Tensor = self()[index]
        return rows


class Values(Plain):
    """A matrix in floating point."""

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self) -> Tensor:
        """The matrix."""
        return self.values


class Whole(Plain):
    """w = (code + offset) · scale of its group, the codes half below zero; `offset` is None where it is 0 everywhere.

    Codes lie group by group, (g, o, i / g), as the TPUs' compiler wants them: a matrix whose groups follow one another
    in its rows it would first copy, or decode whole.
    """

    scale: Tensor
    offset: Tensor | None

    def __init__(
        self, codes: Tensor, scale: Tensor, offset: Tensor | None, *, narrow: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.name, self.dtype = NARROW if narrow else WIDE, dtype
        self.register_buffer(self.name, codes)
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    @classmethod
    def of(cls, grid: Grid, dtype: torch.dtype) -> Self:
        """A grid, decoded into numbers of such a type."""
        half = 2 ** (grid.bits - 1)
        offset = None if grid.within(-half, half - 1) else half - grid.zero
        codes = grid.codes if offset is None else grid.codes - offset.repeat_interleave(grid.group, 1)
        by_group = codes.to(torch.int8).unflatten(1, (-1, grid.group)).transpose(0, 1).contiguous()
        moved = None if offset is None else offset.T.to(torch.int8 if half < 128 else torch.int16).contiguous()
        return cls(by_group, narrowest(grid.scale.T.contiguous()), moved, narrow=grid.bits <= 4, dtype=dtype)

    @property
    def codes(self) -> Tensor:
        """The integers, group by group."""
        return self.get_buffer(self.name)

    def decoded(self, codes: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
        """The numbers that some rows of codes stand for."""
        numbers = codes.to(self.dtype)
        numbers = numbers if offset is None else numbers + offset.unsqueeze(-1).to(self.dtype)
        return (numbers * scale.unsqueeze(-1)).to(self.dtype).transpose(0, 1).flatten(1)

    def forward(self) -> Tensor:
        """The matrix."""
        return self.decoded(self.codes, self.scale, self.offset)

    def linear(self, x: Tensor) -> Tensor:
        """x Wᵀ: of each group the product with its codes, which then is scaled."""
        y = self.sums(x.reshape(-1, x.shape[-1]))
        return y.to(x.dtype).reshape(*x.shape[:-1], y.shape[-1])

    def sums(self, x: Tensor) -> Tensor:
        """x Wᵀ of a matrix."""
        parts = x.unflatten(1, (self.codes.shape[0], -1)).transpose(0, 1)
        y = parts @ self.codes.to(x.dtype).transpose(1, 2)
        if self.offset is not None:
            y = y + parts.sum(-1, keepdim=True) * self.offset.unsqueeze(1).to(x.dtype)
        total: Tensor = (y * self.scale.unsqueeze(1)).float().sum(0)
        return total

    def look_up(self, index: Tensor) -> Tensor:
        """Some rows, which alone are decoded."""
        offset = None if self.offset is None else self.offset[:, index]
        return self.decoded(self.codes[:, index], self.scale[:, index], offset)


class Product(Plain):
    """A matrix of low rank, never formed to run a linear layer."""

    def __init__(self, a: Plain, b: Plain, dtype: torch.dtype) -> None:
        super().__init__()
        self.a, self.b, self.dtype = a, b, dtype

    def forward(self) -> Tensor:
        """The matrix."""
        product: Tensor = self.a().to(self.dtype) @ self.b().to(self.dtype)
        return product

    def linear(self, x: Tensor) -> Tensor:
        """x Bᵀ Aᵀ."""
        return self.a.linear(self.b.linear(x))

    def look_up(self, index: Tensor) -> Tensor:
        """Those of A, times B."""
        rows: Tensor = self.a.look_up(index).to(self.dtype) @ self.b().to(self.dtype)
        return rows


class Both(Plain):
    """A base, and a correction beside it."""

    def __init__(self, base: Plain, correction: Plain) -> None:
        super().__init__()
        self.base, self.correction = base, correction

    def forward(self) -> Tensor:
        """The matrix."""
        total: Tensor = self.base() + self.correction()
        return total

    def linear(self, x: Tensor) -> Tensor:
        """x baseᵀ + x correctionᵀ."""
        return self.base.linear(x) + self.correction.linear(x)


class Rotated(Plain):
    """A matrix that is written down turned, for an input that is turned as it comes."""

    def __init__(self, base: Plain, size: int) -> None:
        super().__init__()
        self.base, self.size = base, size

    def forward(self) -> Tensor:
        """The matrix."""
        return hadamard(self.base(), self.size)

    def linear(self, x: Tensor) -> Tensor:
        """(x H) (W H)ᵀ."""
        return self.base.linear(hadamard(x, self.size))


class Integers(Whole):
    """Integers whose input becomes integers too; of one scale for each row, they are multiplied as whole numbers."""

    inputs: int
    apart: bool  # whether the layer only wants the input rounded, as a convolution does

    def activate(self, x: Tensor) -> Tensor:
        """Each row on its grid, for a layer that multiplies by itself."""
        return rounded(x, self.inputs) if self.apart else x

    def sums(self, x: Tensor) -> Tensor:
        """x Wᵀ of a matrix."""
        q, a = integers(x, self.inputs)
        if len(self.codes) > 1:
            return super().sums(q.to(x.dtype)) * a
        y = torch._int_mm(q.to(torch.int8), self.codes[0].T).float()
        y = y if self.offset is None else y + q.sum(1, keepdim=True) * self.offset.float()
        return a * y * self.scale.float()


def narrowest(scale: Tensor) -> Tensor:
    """A scale in float16, where that says the same."""
    half = scale.half()
    return half if torch.equal(half.float(), scale) else scale


def plain_of(weight: Weight, layer: nn.Module, dtype: torch.dtype) -> Plain | None:
    """A weight in plain operators, for a layer that computes in such a type; None if it has no such form."""
    if isinstance(weight, Dense):
        return Values(weight.values)
    if isinstance(weight, Masked):  # no chip skips its zeros
        return Values(weight.dense().to(weight.values.dtype))
    if isinstance(weight, (LowRank, Sum, Turned)):
        return nested(weight, layer, dtype)
    grid = grid_of(weight)
    if grid is None:
        return None
    if not isinstance(weight, Dynamic):
        return Whole.of(grid, dtype)
    found = Integers.of(grid, dtype)
    found.inputs, found.apart = weight.inputs, convolves(layer)
    return found


def nested(weight: LowRank | Sum | Turned, layer: nn.Module, dtype: torch.dtype) -> Plain | None:
    """A weight that is made of others; not one whose parts would round an input that they do not see."""
    if isinstance(weight, Turned):
        base = plain_of(weight.base, layer, dtype)
        return None if base is None or isinstance(base, Integers) else Rotated(base, weight.size)
    pair = (weight.a, weight.b) if isinstance(weight, LowRank) else (weight.base, weight.correction)
    one, other = (plain_of(part, layer, dtype) for part in pair)
    if one is None or other is None or isinstance(one, Integers):
        return None
    return Product(one, other, dtype) if isinstance(weight, LowRank) else Both(one, other)


def convolves(layer: nn.Module) -> bool:
    """Whether a layer is, or stands for, a convolution."""
    return isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, CompressedConv))


class PlainLayer(nn.Module):
    """A linear layer, a convolution or an embedding on a weight in plain operators, otherwise as the one given."""

    def __init__(self, layer: nn.Module, matrix: Plain) -> None:
        super().__init__()
        self.matrix, self.bias = matrix, getattr(layer, "bias", None)
        self.layer, self.sizes = (layer,), weight_of(layer).shape  # in a tuple: its tensors are none of ours
        self.stands_for: Any = layer.stands_for if isinstance(layer, CompressedLayer) else type(layer)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives."""
        if issubclass(self.stands_for, nn.Embedding):
            rows = self.matrix.look_up(x.flatten())
            return rows.reshape(*x.shape, rows.shape[1]) * scale_of(self.layer[0])
        if not issubclass(self.stands_for, nn.Linear):
            return self.convolved(x)
        y = self.matrix.linear(self.matrix.activate(x))
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def convolved(self, x: Tensor) -> Tensor:
        """What a convolution gives."""
        layer: Any = self.layer[0]
        lot = x.reshape(-1, math.prod(x.shape[-1 - len(layer.kernel_size) :]))
        given = self.matrix.activate(lot).reshape(x.shape)
        kernel = self.matrix().to(x.dtype).unflatten(1, (layer.in_channels // layer.groups, *layer.kernel_size))
        made: Tensor = self.stands_for._conv_forward(layer, given, kernel, self.bias)
        return made


def make_plain(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with plain layers in the place of compressed ones; those that share a weight still do."""
    held: dict[int, Plain] = {}
    layers: dict[int, PlainLayer] = {}
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(layer, CompressedLayer):
            continue
        if id(layer.matrix) not in held:
            found = plain_of(layer.weight, layer, dtype)
            assert found is not None
            held[id(layer.matrix)] = found
        plain = layers.setdefault(id(layer), PlainLayer(layer, held[id(layer.matrix)]))
        if not name:
            return plain
        put(model, name, plain)
    return model
