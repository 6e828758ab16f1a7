"""A product of two narrow matrices: two layers, one after the other.

    y = (x Bᵀ) Aᵀ

Shapes: o outputs, i inputs, r the rank.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lissom.formats import CompressedLinear, LowRank, Weight, wrap


def low_rank_layer(
    layer: CompressedLinear, fitting: Callable[[CompressedLinear], nn.Module | None]
) -> "LowRankLinear | None":
    """The layer as two, or None where its weight is no such product."""
    weight = layer.weight
    return LowRankLinear(weight, layer.bias, fitting) if isinstance(weight, LowRank) else None


class LowRankLinear(nn.Module):
    """B, and then A with the bias; each on a kernel where one fits, else dense."""

    def __init__(
        self, weight: LowRank, bias: nn.Parameter | None, fitting: Callable[[CompressedLinear], nn.Module | None]
    ) -> None:
        super().__init__()
        self.right, self.left = factor(weight.b, None, fitting), factor(weight.a, bias, fitting)

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ + b."""
        y: Tensor = self.left(self.right(x.float()))
        return y.to(x.dtype)


def factor(
    weight: Weight, bias: nn.Parameter | None, fitting: Callable[[CompressedLinear], nn.Module | None]
) -> nn.Module:
    """One of the two as a layer."""
    o, i = weight.shape
    with torch.device("meta"):
        dense = nn.Linear(i, o, bias=False)
    dense.register_parameter("bias", bias)
    wrapped = wrap(dense, weight)
    assert isinstance(wrapped, CompressedLinear)
    lowered = fitting(wrapped)
    if lowered is None:
        dense.weight = nn.Parameter(weight.dense(), requires_grad=False)
    return lowered or dense
