"""A pruned matrix: the weights that were kept, in 16 or 32 bits, spread to their places as they are read.

    y_o = Σ_{j kept in row o} w_oj x_j + b_o

Any pattern will do: N of M, whole rows, none. Where weights and inputs are bfloat16, they are multiplied as such, else
as floats. In C where that was built, else by its definition in PyTorch, which decodes the weight at every call.

Shapes: o outputs, i inputs, k weights kept, m bytes of the mask.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from lissom.engine.kernels.layer import KernelLinear
from lissom.engine.kernels.native import calls
from lissom.engine.kernels.native.structs import CDense
from lissom.formats import CompressedLayer, Masked
from lissom.formats.plane import from_bitmask


def masked_layer(layer: CompressedLayer) -> "MaskedLinear | None":
    """The layer on this kernel, or None where its weight has no mask, or is not on the CPU."""
    weight = layer.weight
    if not isinstance(weight, Masked) or weight.values.device.type != "cpu" or weight.values.dtype not in calls.TYPES:
        return None
    return MaskedLinear(weight, layer.bias)


class MaskedLinear(KernelLinear):
    """A linear layer of kept weights."""

    values: Tensor
    mask: Tensor
    starts: Tensor
    bias: Tensor | None

    def __init__(self, weight: Masked, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.shape = weight.shape
        self.register_buffer("values", weight.values.contiguous())
        self.register_buffer("mask", weight.mask.contiguous())
        self.register_buffer("starts", F.pad(counted(self.mask, weight.shape).cumsum(0), (1, 0)))
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())

    def read(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n i"]:
        """Inputs as the kernel reads them."""
        return x.to(calls.read_as(self.values.dtype, x.dtype))

    def multiply(self, rows: Float[Tensor, "n i"], kernel: str) -> Float[Tensor, "n o"]:
        """Rows times what was kept, and the bias."""
        return calls.dense(self.given(rows.dtype), rows, kernel)

    def look_up(self, which: Int[Tensor, " n"]) -> Float[Tensor, "n i"]:
        """Some rows of the matrix."""
        at = which.unsqueeze(1) * self.shape[1] + torch.arange(self.shape[1])
        kept = (self.mask[at // 8] >> (at % 8).byte() & 1).bool()
        values = F.pad(self.values, (0, 1)).float()  # so that there is one where all were pruned
        place = self.starts[which].unsqueeze(1) + kept.cumsum(1) - kept.long()
        return torch.where(kept, values[place], 0.0)

    def given(self, inputs: torch.dtype) -> CDense:
        """What the library is given, for inputs of a type."""
        bias = None if self.bias is None else self.bias.data_ptr()
        places = (self.values.data_ptr(), bias, self.mask.data_ptr(), self.starts.data_ptr())
        return CDense(*places, *self.shape, *(calls.TYPES[dtype] for dtype in (self.values.dtype, inputs)))

    def definition(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """What the kernel computes, in PyTorch."""
        weight = Masked(values=self.values, mask=self.mask, size=self.shape)
        return F.linear(x.float(), weight.dense(), self.bias).to(x.dtype)


def counted(mask: UInt8[Tensor, " m"], shape: tuple[int, int]) -> Int[Tensor, " o"]:
    """How many weights of each row a bitmask keeps: of rows that are whole bytes, a word at a time."""
    rows, columns = shape
    if columns % 8:
        return from_bitmask(mask, shape).sum(1)
    words = mask.numpy().view(f"u{math.gcd(columns // 8, 8)}")
    return torch.from_numpy(np.bitwise_count(words).reshape(rows, -1).sum(1, dtype=np.int64))
