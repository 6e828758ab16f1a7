"""A product of two matrices of signs: one kernel after the other, on what the first gives.

    y = s ∘ (A (m ∘ (B (t ∘ x))))

Shapes: o outputs, i inputs, r the rank.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lissom.engine.kernels.panels import Grid, PanelLinear
from lissom.formats import CompressedLinear, Signs


def signs_layer(layer: CompressedLinear) -> "SignsLinear | None":
    """The layer on two kernels, or None where its weight is no such product, or is not on the CPU."""
    weight = layer.weight
    if not isinstance(weight, Signs) or weight.rows.device.type != "cpu":
        return None
    return SignsLinear(weight, layer.bias)


class SignsLinear(nn.Module):
    """B with m behind it, then A with s behind it and the bias."""

    columns: Tensor

    def __init__(self, weight: Signs, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.register_buffer("columns", weight.columns.float())
        self.right = PanelLinear(grid(weight.right.codes(), weight.middle), None)
        self.left = PanelLinear(grid(weight.left.codes().T, weight.rows), bias)

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ + b."""
        y: Tensor = self.left(self.right(x.float() * self.columns))
        return y.to(x.dtype)


def grid(codes: Tensor, scale: Float[Tensor, " o"]) -> Grid:
    """Bits with a scale for each output."""
    return Grid(codes=codes, bits=1, scale=torch.ones(len(codes), 1), zero=1, unit=scale.float())
