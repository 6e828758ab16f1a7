"""Weights of 5 to 8 bits, one scale for each output: bfloat16 activations times int8 weights.

    y = bf16( Σ_j bf16(x_j) q_oj ) · s_o        the sum in float32

The kernel is PyTorch's own for CPUs; its definition is `lissom::affine_linear`. It reads int8 weights as they are;
narrower ones are widened to bytes.
It runs however many rows there are, although for hundreds of them decoding the weights once would be faster: a row's
result must not depend on how many others came along.

Shapes: o outputs, i inputs.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lissom.formats import Affine, CompressedLinear


def int8_layer(layer: CompressedLinear) -> "Int8Linear | None":
    """The layer on this kernel, or None: it takes symmetric weights with one scale for each output.

    And inputs in sixteens: with others PyTorch 2.13's kernel reads past the end of a row, and does not say so.
    """
    weight = layer.weight
    if not isinstance(weight, Affine) or weight.bits < 5 or weight.zero is not None:
        return None
    fits = weight.scale.shape[1] == 1 and weight.shape[1] % 16 == 0
    return Int8Linear(weight, layer.bias) if fits else None


class Int8Linear(nn.Module):
    """A linear layer on signed int8 weights."""

    codes: Tensor
    scale: Tensor
    ones: Tensor

    def __init__(self, weight: Affine, bias: nn.Parameter | None) -> None:
        super().__init__()
        codes = (weight.plane.codes() - 2 ** (weight.bits - 1)).view(torch.int8)  # below zero it wraps, as int8 does
        kept = weight.kept()
        self.register_buffer("codes", codes if kept is None else codes * kept)
        self.register_buffer("scale", weight.scale.float().flatten())
        # The kernel would apply the scales in bfloat16, which is too coarse beside 8-bit weights: it is given ones.
        self.register_buffer("ones", torch.ones(codes.shape[0], dtype=torch.bfloat16))
        self.bias = bias

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ + b."""
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        y: Tensor = torch.ops.aten._weight_int8pack_mm(rows, self.codes, self.ones)
        y = (y.float() * self.scale).to(x.dtype).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias
