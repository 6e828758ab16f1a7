"""Weights as bytes that PyTorch's plainest operators read, for runtimes that have no others: ExecuTorch's.

Where the inputs of a linear product become integers too, it is written as what XNNPACK has kernels for (qd8-f32-qc8w,
qc4w, qb4w): the input is rounded for each token, about a zero of its own, and the kernel multiplies whole numbers.

Shapes: o outputs, i inputs, g groups of a row, n places of an index.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lissom.export.graphs.nodes import Matrix
from lissom.export.grid import Grid

HALF, WHOLE = 4, 8  # bits of a code: two in a byte, or one
BLOCK = 32  # of weights, a multiple of which share a scale in XNNPACK's blocks of 4 bits


class Codes(Matrix):
    """Codes of 4 or 8 bits with a scale for each group, and what a group's lowest code stands for."""

    octets: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, grid: Grid) -> None:
        self.bits = HALF if grid.bits <= HALF or grid.within(-8, 7) else WHOLE
        group = grid.group
        of = "a scale for each row" if grid.scale.shape[1] == 1 else f"groups of {group}"
        super().__init__(f"{self.bits} bits, {of}")
        half = 2 ** (self.bits - 1)
        zero = torch.full_like(grid.zero, half) if grid.within(-half, half - 1) else grid.zero
        codes = (grid.codes + zero.repeat_interleave(group, 1)).to(torch.uint8)
        self.inputs = codes.shape[1]
        self.register_buffer("octets", paired(codes) if self.bits == HALF else codes)
        self.register_buffer("scale", grid.scale)
        self.register_buffer("zero", zero.to(torch.uint8))

    def whole(self) -> Float[Tensor, "o i"]:
        """All of it."""
        return self.read(self.octets, self.scale, self.zero)

    def rows(self, index: Int[Tensor, "*n"]) -> Float[Tensor, "*n i"]:
        """Some rows."""
        flat = index.flatten()
        found = self.read(self.octets[flat], self.scale[flat], self.zero[flat])
        return found.reshape(*index.shape, self.inputs)

    def read(self, octets: UInt8[Tensor, "n m"], scale: Float[Tensor, "n g"], zero: UInt8[Tensor, "n g"]) -> Tensor:
        """The numbers that rows of bytes stand for [n, i]."""
        codes = octets.float()
        if self.bits == HALF:  # by floats, which are exact: not every runtime shifts bits
            high = (codes / 16).floor()
            codes = torch.stack([codes - 16 * high, high], -1).flatten(1)
        codes = codes[:, : self.inputs].unflatten(1, (scale.shape[1], -1))
        values: Tensor = (codes - zero.float().unsqueeze(-1)) * scale.unsqueeze(-1)
        return values.flatten(1)


class Rounding(Matrix):
    """Integers for inputs that become integers of 8 bits, as XNNPACK multiplies them."""

    codes: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, grid: Grid, level: int) -> None:
        self.bits, self.level = (HALF if grid.within(-8, 7) else WHOLE), level
        self.group = 0 if grid.scale.shape[1] == 1 else grid.group
        of = f"groups of {self.group}" if self.group else "a scale for each row"
        super().__init__(f"{self.bits} bits, {of}, inputs of 8 bits")
        scale = grid.scale if self.group else grid.scale.flatten()
        self.register_buffer("codes", grid.codes.to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("zero", torch.zeros_like(scale, dtype=torch.int32 if self.group else torch.int64))

    def whole(self) -> Float[Tensor, "o i"]:
        """All of it."""
        low, high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        given = (self.codes, self.scale, self.zero)
        if not self.group:
            return torch.ops.quantized_decomposed.dequantize_per_channel(*given, 0, low, high, torch.int8)  # type: ignore[no-any-return]
        more = (torch.int8, low, high)
        return torch.ops.torchao.dequantize_affine(given[0], (1, self.group), *given[1:], *more)  # type: ignore[no-any-return]

    def product(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ."""
        ops = torch.ops.quantized_decomposed
        scale, zero = ops.choose_qparams_per_token_asymmetric(x, torch.int8)
        rounded = ops.quantize_per_token(x, scale, zero, -128, 127, torch.int8)
        near = ops.dequantize_per_token(rounded, scale, zero, -128, 127, torch.int8, torch.float32)
        return F.linear(near, self.whole())

    def nbytes(self) -> float:
        """Bytes in the file, where two codes of 4 bits are in one."""
        return self.codes.numel() * self.bits / 8 + self.scale.nbytes


def paired(codes: UInt8[Tensor, "o i"]) -> UInt8[Tensor, "o m"]:
    """Two codes of 4 bits in each byte, the first one lowest."""
    even = F.pad(codes, (0, codes.shape[1] % 2))
    return even[:, ::2] | even[:, 1::2] << 4


def coded(grid: Grid, level: int) -> Matrix:
    """A grid as bytes; for inputs that become integers too as XNNPACK wants it, where it has a kernel for that."""
    row = grid.scale.shape[1] == 1
    blocks = grid.within(-8, 7) and grid.group % BLOCK == 0
    return Rounding(grid, level) if level and grid.within(-128, 127) and (row or blocks) else Codes(grid)


def operators() -> None:
    """Let PyTorch know the operators that are written for XNNPACK."""
    import torch.ao.quantization.fx._decomposed  # noqa: F401
    import torchao.quantization.quant_primitives  # noqa: F401
