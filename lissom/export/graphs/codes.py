"""Weights as bytes that PyTorch's plainest operators read, for runtimes that have no others: ExecuTorch's.

Where the inputs of a product become integers too, they are rounded by such operators as well. That XNNPACK multiply
whole numbers was tried: what ExecuTorch 1.4.1 wrote for that (qd8-f32-qc8w, qc4w, qb4w) its own runtime did not load.

Shapes: o outputs, i inputs, g groups of a row, n places of an index.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lissom.export.graphs.nodes import Matrix
from lissom.export.grid import Grid

HALF, WHOLE = 4, 8  # bits of a code: two in a byte, or one


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


def paired(codes: UInt8[Tensor, "o i"]) -> UInt8[Tensor, "o m"]:
    """Two codes of 4 bits in each byte, the first one lowest."""
    even = F.pad(codes, (0, codes.shape[1] % 2))
    return even[:, ::2] | even[:, 1::2] << 4
