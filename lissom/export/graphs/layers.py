"""Layers as ONNX computes them: which nodes hold a weight as it is, and what stands in a compressed layer's place."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from lissom.export.graphs.codes import Codes
from lissom.export.graphs.nodes import Blocks, Book, Corrected, Factors, ForTurned, Integers, Matrix, Values, symmetric
from lissom.export.grid import Grid, grid_of
from lissom.export.handover import Form
from lissom.formats import (
    CompressedConv,
    CompressedEmbedding,
    CompressedLayer,
    Dense,
    Dynamic,
    LowRank,
    Masked,
    Palette,
    Sum,
    Turned,
    Weight,
    Xnor,
    scale_of,
)
from lissom.formats.linear import compressed_kind
from lissom.models.families import put
from lissom.statistics import Moments
from lissom.techniques.quantize.rtn import rtn

BLOCKS = (128, 64, 32, 16)  # of weights that MatMulNBits lets share a scale; it would also take larger ones
WIDTHS = (2, 4, 8)
GROUP = 32  # of weights that become 8 bits
LEVEL = 4  # of accuracy, at which MatMulNBits rounds its input to 8 bits
PRODUCT, ROWS, WHOLE = "product", "rows", "whole"  # what a layer asks of a matrix
BLOCKED, TABLE = "blocked", "table"  # a product of blocks or none; rows of a matrix that may be multiplied with too
CODED, BYTES = "coded", "bytes"  # a product, and anything else, in plain operators
AS_ASKED: Mapping[str, str] = {}
OPENVINO = {PRODUCT: BLOCKED, ROWS: TABLE}  # what it is asked instead
EXECUTORCH = {PRODUCT: CODED, ROWS: BYTES, WHOLE: BYTES}
MULTIPLIES = (PRODUCT, BLOCKED, CODED)


class Standing(nn.Module):
    """Stands for a compressed layer while a module is followed; it has the attributes of that layer."""

    def __init__(self, layer: CompressedLayer, matrix: Matrix) -> None:
        super().__init__()
        self.matrix, self.bias = matrix, layer.bias
        self.geometry, self.stands_for = layer.geometry, layer.stands_for
        rounds = getattr(matrix, "level", 0) == LEVEL
        plain = type(layer.weight).activate is Weight.activate
        self.activate = None if rounds or plain else layer.weight.activate

    def __getattr__(self, name: str) -> Any:
        geometry = self.__dict__.get("geometry", {})
        return geometry[name] if name in geometry else super().__getattr__(name)

    def given(self, x: Float[Tensor, "*n"], dims: int) -> Float[Tensor, "*n"]:
        """The input as the weight's format wants it."""
        if self.activate is None:
            return x
        return self.activate(x.reshape(-1, math.prod(x.shape[-dims:]))).reshape(x.shape)


class StandingLinear(Standing):
    """For a linear layer."""

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ + b."""
        y = self.matrix.product(self.given(x, 1))
        return y if self.bias is None else y + self.bias


class StandingConv(Standing):
    """For a convolution."""

    def forward(self, x: Float[Tensor, "*n"]) -> Float[Tensor, "*m"]:
        """The convolution of the layer that it stands for."""
        kernel = self.matrix.whole().unflatten(1, (self.in_channels // self.groups, *self.kernel_size))
        x = self.given(x, 1 + len(self.kernel_size))
        return self.stands_for._conv_forward(self, x, kernel, self.bias)  # type: ignore[no-any-return, attr-defined]


class StandingEmbedding(Standing):
    """For an embedding."""

    def forward(self, index: Tensor) -> Float[Tensor, "*n i"]:
        """The rows asked for, scaled where the layer does so."""
        rows, scale = self.matrix.rows(index), scale_of(self)
        return rows if scale == 1 else rows * scale


STANDING = {PRODUCT: StandingLinear, ROWS: StandingEmbedding, WHOLE: StandingConv}


def role_of(layer: nn.Module) -> str:
    """What a layer asks of its matrix."""
    kind = type(layer) if isinstance(layer, CompressedLayer) else compressed_kind(layer)
    return {CompressedConv: WHOLE, CompressedEmbedding: ROWS}.get(kind, PRODUCT)  # type: ignore[arg-type]


def level_of(weight: Weight) -> int:
    """How exactly inputs are to be multiplied: 0 stands for as they are."""
    return LEVEL if isinstance(weight, Dynamic) and weight.inputs == 8 else 0


def holds(weight: Weight, layer: nn.Module, *, asks: Mapping[str, str] = AS_ASKED, nodes: bool = True) -> Form | None:
    """The form that holds a weight as it is, with the names of nodes or without; for `asks` see `stand`."""
    role, (o, i) = role_of(layer), weight.shape
    matrix = matrix_of(weight, asks.get(role, role), level_of(weight))
    return None if matrix is None else Form(name=matrix.told(nodes), bits=8 * matrix.nbytes() / (o * i))


def nearest(weight: Weight, layer: nn.Module) -> Weight:
    """Eight bits in groups of 32, or where rows are not made of such groups with a scale for each row."""
    dense, i = weight.dense(), weight.shape[1]
    group = 0 if i % GROUP else GROUP
    return rtn(Dense(values=dense), Moments.blank(i, dense.device), bits=8, group=group, clip=False)


def stand(model: nn.Module, asks: Mapping[str, str] = AS_ASKED) -> nn.Module:
    """Put such layers in the places of compressed ones; a matrix of several stays one.

    `asks` is what to ask of a matrix instead of what its layers do, where a runtime needs that. One whose rows are
    looked up by some of them is asked for rows.
    """
    layers = {layer: role_of(layer) for layer in model.modules() if isinstance(layer, CompressedLayer)}
    roles: dict[nn.Module, set[str]] = {}
    for layer, role in layers.items():
        roles.setdefault(layer.matrix, set()).add(role)
    held: dict[nn.Module, Matrix] = {}
    made = dict[nn.Module, Standing]()
    for layer, role in layers.items():
        if layer.matrix not in held:
            asked = ROWS if ROWS in roles[layer.matrix] else role
            matrix = matrix_of(layer.weight, asks.get(asked, asked), level_of(layer.weight))
            assert matrix is not None, f"{layer}: what is handed over cannot be held"
            held[layer.matrix] = matrix
        made[layer] = STANDING[role](layer, held[layer.matrix])
    for name, part in list(model.named_modules(remove_duplicate=False)):
        if part in made:
            put(model, name, made[part])
    return model


def matrix_of(weight: Weight, role: str, level: int = 0) -> Matrix | None:
    """The nodes that hold a weight as it is, for what a layer asks of it; None where none do."""
    if type(weight) in SEVERAL:
        return SEVERAL[type(weight)](weight, role)
    if isinstance(weight, Palette):
        full = weight.kept() is not None and (weight.width > 1 or weight.codebook.shape[1] > 255)
        return None if full else Book(weight)
    if isinstance(weight, Masked | Dense):
        values = weight.dense().to(weight.values.dtype) if isinstance(weight, Masked) else weight.values
        return Values(values.float() if role in EXECUTORCH.values() else values)
    grid = grid_of(weight.binary if isinstance(weight, Xnor) else weight)
    return None if grid is None else integers(grid, role, level)


def integers(grid: Grid, role: str, level: int) -> Matrix | None:
    """Blocks where a layer can be given them, which runtimes have kernels for."""
    if role in EXECUTORCH.values():
        return Codes(grid)
    size = None if role == WHOLE else size_of(grid, role)
    grouped = grid.scale.shape[1] > 1
    if size is None and grouped and role in OPENVINO.values():
        return None
    if role == TABLE:
        return Integers(in_groups(grid, size) if grouped and size else grid, looked_up=False)
    bits = next((bits for bits in WIDTHS if symmetric(grid, bits) or grid.bits <= bits), None)
    if size is None or bits is None:
        return Integers(grid, looked_up=role == ROWS)
    return Blocks(grid, size, bits, looked_up=role == ROWS, level=level)


def in_groups(grid: Grid, size: int) -> Grid:
    """The same with a scale for every `size` inputs."""
    scale = grid.scale_of(size)
    assert scale is not None
    return replace(grid, scale=scale, zero=grid.zero.repeat_interleave(grid.group // size, 1))


def size_of(grid: Grid, role: str) -> int | None:
    """Blocks that lie within groups, the largest; of whole rows those that fill them best. None if there are none."""
    i = grid.codes.shape[1]
    if grid.scale.shape[1] == 1 and role in (PRODUCT, BLOCKED):
        return min(BLOCKS, key=lambda size: (-i % size, -size))
    return next((size for size in BLOCKS if grid.group % size == 0), None)


def factors(weight: LowRank, role: str) -> Matrix | None:
    """Of a product: both are asked what it is, but of the second, where rows are, all of it."""
    a, b = matrix_of(weight.a, role), matrix_of(weight.b, WHOLE if role == ROWS else role)
    return None if a is None or b is None else Factors(a, b)


def corrected(weight: Sum, role: str) -> Matrix | None:
    """Of a sum."""
    base, correction = matrix_of(weight.base, role), matrix_of(weight.correction, role)
    return None if base is None or correction is None else Corrected(base, correction)


def turned(weight: Turned, role: str) -> Matrix | None:
    """Of a weight for turned inputs, where it is given the input."""
    base = matrix_of(weight.base, role) if role in MULTIPLIES else None
    return None if base is None else ForTurned(base, weight.size)


SEVERAL: dict[type[Weight], Callable[[Any, str], Matrix | None]] = {
    LowRank: factors,
    Sum: corrected,
    Turned: turned,
}
