"""Weights as nodes of ONNX: whole numbers that stay whole numbers in the file, and what layers ask of them.

A linear product is MatMulNBits, ONNX Runtime's own node (com.microsoft), for blocks of a row that share a scale; rows
that are looked up are GatherBlockQuantized, of the very same tensors. Everything else is DequantizeLinear of the
standard, which needs version 21 of it for groups and for 4 bits. A codebook is looked up by Gather.

What is called here is recorded while torch.export looks on; only the runtime computes with it.

Shapes: o outputs, i inputs, g groups of a row, n places of an index.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn

from lissom.export.grid import Grid
from lissom.formats import Palette
from lissom.formats.plane import pack
from lissom.formats.turned import hadamard

HALVES = ("int4", "uint4")  # PyTorch has no numbers of 4 bits: they are bytes until the file is written


class Matrix(nn.Module):
    """A matrix, what it is called, and by which node it is read."""

    def __init__(self, kind: str, node: str = "") -> None:
        super().__init__()
        self.kind, self.node = kind, node

    def told(self, nodes: bool) -> str:
        """What it is called, with the node that reads it or without."""
        return f"{self.node} {self.kind}".strip() if nodes else self.kind

    def whole(self) -> Float[Tensor, "o i"]:
        """All of it."""
        raise NotImplementedError

    def product(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ."""
        return F.linear(x, self.whole())

    def rows(self, index: Int[Tensor, "*n"]) -> Float[Tensor, "*n i"]:
        """Some rows."""
        return F.embedding(index, self.whole())

    def nbytes(self) -> float:
        """Bytes in the file."""
        held = self.named_buffers()
        return sum(t.numel() * t.element_size() * (0.5 if name.endswith(HALVES) else 1.0) for name, t in held)


class Values(Matrix):
    """Floating point as it is stored; what is computed with it is float32."""

    values: Tensor

    def __init__(self, values: Float[Tensor, "o i"]) -> None:
        super().__init__(str(values.dtype).removeprefix("torch."))
        self.register_buffer("values", values)

    def whole(self) -> Float[Tensor, "o i"]:
        """All of it."""
        return self.values.float()

    def rows(self, index: Int[Tensor, "*n"]) -> Float[Tensor, "*n i"]:
        """Some rows, and only they become float32."""
        return F.embedding(index, self.values).float()


class Blocks(Matrix):
    """Codes of 2, 4 or 8 bits, in blocks that each have a scale, and a zero where the grid is not symmetric.

    With `level` 4 the runtime rounds inputs to 8 bits, block by block, and multiplies whole numbers.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(self, grid: Grid, size: int, bits: int, *, looked_up: bool, level: int = 0) -> None:
        super().__init__(f"{bits} bits, blocks of {size}", "GatherBlockQuantized" if looked_up else "MatMulNBits")
        self.size, self.bits, self.level = size, bits, level
        self.outputs, self.inputs = grid.codes.shape
        count = -(-self.inputs // size)
        zero = grid.zero.repeat_interleave(count // grid.zero.shape[1], 1)
        lowest = torch.full_like(zero, 2 ** (bits - 1)) if symmetric(grid, bits) else zero
        codes = F.pad(grid.codes, (0, count * size - self.inputs)) + lowest.repeat_interleave(size, 1)
        packed = octets(codes, bits)
        self.shape = (self.outputs, count, size * bits // 8)
        self.register_buffer("packed", packed if looked_up else packed.reshape(self.shape))
        self.register_buffer("scale", grid.scale.repeat_interleave(count // grid.scale.shape[1], 1))
        self.register_buffer("zero", None if symmetric(grid, bits) else octets(zero, bits))

    def product(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ."""
        packed = self.packed if self.packed.dim() == 3 else self.packed.reshape(self.shape)
        numbers = {"N": self.outputs, "K": self.inputs, "accuracy_level": self.level, **self.numbers()}
        given = (x, packed, self.scale, self.zero)
        return node("com.microsoft::MatMulNBits", given, numbers, (*x.shape[:-1], self.outputs))

    def rows(self, index: Int[Tensor, "*n"]) -> Float[Tensor, "*n i"]:
        """Some rows."""
        packed = self.packed if self.packed.dim() == 2 else self.packed.flatten(1)
        numbers = {"gather_axis": 0, "quantize_axis": 1, **self.numbers()}
        given = (packed, index, self.scale, self.zero)
        return node("com.microsoft::GatherBlockQuantized", given, numbers, (*index.shape, self.inputs))

    def told(self, nodes: bool) -> str:
        """What it is called; how inputs are rounded belongs to the node."""
        return super().told(nodes) + (", inputs of 8 bits" if nodes and self.level else "")

    def numbers(self) -> dict[str, int]:
        """What both nodes are given."""
        return {"bits": self.bits, "block_size": self.size}


class Integers(Matrix):
    """Codes of 4 or 8 bits with a scale for each row or group of it, and a zero where they need one."""

    scale: Tensor

    def __init__(self, grid: Grid, *, looked_up: bool) -> None:
        low = [("int4", grid.within(-8, 7)), ("uint4", grid.bits <= 4)]
        high = [("int8", grid.within(-128, 127)), ("uint8", True)]
        kind = next(name for name, fits in ([*high] if looked_up else [*low, *high]) if fits)
        self_scaled = grid.scale.shape[1] == 1
        of = "a scale for each row" if self_scaled else f"groups of {grid.group}"
        super().__init__(f"{kind}, {of}", "Gather" if looked_up else "DequantizeLinear")
        signed, self.group, self.names = kind.startswith("int"), grid.group, (f"codes_{kind}", f"zero_{kind}")
        zero = torch.zeros_like(grid.zero) if signed else grid.zero
        codes = grid.codes + zero.repeat_interleave(grid.group, 1)
        narrow = torch.int8 if signed else torch.uint8
        self.register_buffer(self.names[0], codes.to(narrow))
        self.register_buffer("scale", grid.scale)
        self.register_buffer(self.names[1], None if signed else zero.to(narrow))

    def whole(self) -> Float[Tensor, "o i"]:
        """All of it."""
        parts = (self.scale, getattr(self, self.names[1]))
        codes, rowwise = getattr(self, self.names[0]), self.scale.shape[1] == 1
        given = (codes, *(part.flatten() if rowwise and part is not None else part for part in parts))
        return node(
            "DequantizeLinear", given, {"axis": 0} if rowwise else {"axis": 1, "block_size": self.group}, codes.shape
        )

    def rows(self, index: Int[Tensor, "*n"]) -> Float[Tensor, "*n i"]:
        """Some rows: only they become floating point, unless their codes have 4 bits."""
        name, zero = self.names[0], getattr(self, self.names[1])
        if name.endswith(HALVES):
            return super().rows(index)
        codes = getattr(self, name)[index].float().unflatten(-1, (self.scale.shape[1], self.group))
        codes = codes if zero is None else codes - zero[index].float().unsqueeze(-1)
        found: Tensor = codes * self.scale[index].unsqueeze(-1)
        return found.flatten(-2)


class Book(Matrix):
    """Indices of 8 bits into codebooks, of which several rows share one; what was pruned has an entry of its own, 0."""

    index: Tensor
    first: Tensor
    table: Tensor
    scale: Tensor | None

    def __init__(self, weight: Palette) -> None:
        book = weight.codebook.dense().unflatten(1, (-1, weight.width))
        super().__init__(f"codebooks of {book.shape[1]} entries, indices of 8 bits", "Gather")
        index, kept = weight.plane.codes(), weight.kept()
        if kept is not None:
            index = torch.where(kept, index, book.shape[1]).to(torch.uint8)
            book = F.pad(book, (0, 0, 0, 1))
        first = torch.arange(len(index)) // weight.rows * book.shape[1]
        self.register_buffer("index", index)
        self.register_buffer("first", first.unsqueeze(1).int())
        self.register_buffer("table", book.flatten(0, 1))
        self.register_buffer("scale", None if weight.scale is None else weight.scale.float())

    def whole(self) -> Float[Tensor, "o i"]:
        """All of it."""
        return self.found(self.index, self.first, self.scale)

    def rows(self, index: Int[Tensor, "*n"]) -> Float[Tensor, "*n i"]:
        """Some rows."""
        return self.found(self.index[index], self.first[index], None if self.scale is None else self.scale[index])

    def found(
        self, index: Shaped[Tensor, "*n m"], first: Shaped[Tensor, "*n 1"], scale: Float[Tensor, "*n g"] | None
    ) -> Float[Tensor, "*n i"]:
        """The values of indices, times the scales of groups where there are any."""
        values: Tensor = F.embedding(index.int() + first, self.table).flatten(-2)
        return (
            values if scale is None else (values.unflatten(-1, (scale.shape[-1], -1)) * scale.unsqueeze(-1)).flatten(-2)
        )


class Factors(Matrix):
    """A product of two matrices, which is never formed where it need not be."""

    def __init__(self, a: Matrix, b: Matrix) -> None:
        super().__init__("product of two")
        self.a, self.b = a, b

    def told(self, nodes: bool) -> str:
        """What it is called, and its factors."""
        return f"{self.kind}: {self.a.told(nodes)}, and {self.b.told(nodes)}"

    def whole(self) -> Float[Tensor, "o i"]:
        """All of it."""
        return self.a.whole() @ self.b.whole()

    def product(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """Two products."""
        return self.a.product(self.b.product(x))

    def rows(self, index: Int[Tensor, "*n"]) -> Float[Tensor, "*n i"]:
        """Some rows of the first, times the second."""
        return self.a.rows(index) @ self.b.whole()


class Corrected(Matrix):
    """A matrix and its correction."""

    def __init__(self, base: Matrix, correction: Matrix) -> None:
        super().__init__("and a correction")
        self.base, self.correction = base, correction

    def told(self, nodes: bool) -> str:
        """What both are called."""
        return f"{self.base.told(nodes)}, {self.kind}: {self.correction.told(nodes)}"

    def whole(self) -> Float[Tensor, "o i"]:
        """All of it."""
        return self.base.whole() + self.correction.whole()

    def product(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """The sum of both products."""
        return self.base.product(x) + self.correction.product(x)

    def rows(self, index: Int[Tensor, "*n"]) -> Float[Tensor, "*n i"]:
        """The sum of both rows."""
        return self.base.rows(index) + self.correction.rows(index)


class ForTurned(Matrix):
    """A matrix for an input that is turned as it comes."""

    def __init__(self, base: Matrix, size: int) -> None:
        super().__init__("for turned inputs")
        self.base, self.size = base, size

    def told(self, nodes: bool) -> str:
        """What the matrix is called."""
        return f"{self.base.told(nodes)}, {self.kind}"

    def product(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """The product with the turned input."""
        return self.base.product(hadamard(x, self.size))


def symmetric(grid: Grid, bits: int) -> bool:
    """Whether codes of so many bits hold a grid with 0 in their middle."""
    return grid.within(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def octets(codes: Int[Tensor, "o n"], bits: int) -> UInt8[Tensor, "o m"]:
    """Each row's codes in bytes, the first one lowest."""
    packed: Tensor = pack(codes.to(torch.uint8), bits).view(torch.uint8)
    return packed[:, : -(-codes.shape[1] * bits // 8)].contiguous()


def node(name: str, given: tuple[Tensor | None, ...], numbers: dict[str, int], shape: tuple[Any, ...]) -> Tensor:
    """What a node of ONNX gives, in float32."""
    attributes: dict[str, Any] = dict(numbers)
    version = 21 if name == "DequantizeLinear" else 1
    while given[-1] is None:
        given = given[:-1]
    return torch.onnx.ops.symbolic(name, given, attributes, dtype=torch.float32, shape=shape, version=version)
