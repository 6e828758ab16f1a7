"""A base and a correction of low rank: the base on the kernel that fits it, and two small products beside it.

    y = kernel(x) + x Bᵀ Aᵀ

Shapes: o outputs, i inputs.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from lissom.engine.kernels.lowrank import LowRankLinear
from lissom.formats import CompressedLinear, Sum, Weight, wrap


def sum_layer(layer: CompressedLinear, fitting: Callable[[CompressedLinear], nn.Module | None]) -> "SumLinear | None":
    """The layer with its base on a kernel, which `fitting` finds, or None where the weight is no sum or none fits.

    And none where the base's format changes its input, which the correction would have to be given as well.
    """
    weight = layer.weight
    if not isinstance(weight, Sum) or type(weight.base).activate is not Weight.activate:
        return None
    base = wrap(layer, weight.base)
    assert isinstance(base, CompressedLinear)
    lowered = fitting(base)
    return None if lowered is None else SumLinear(lowered, LowRankLinear(weight.correction, None, fitting))


class SumLinear(nn.Module):
    """A base that has the bias, and its correction."""

    def __init__(self, base: nn.Module, correction: LowRankLinear) -> None:
        super().__init__()
        self.base, self.correction = base, correction

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ + b."""
        y: Tensor = self.base(x) + self.correction(x)
        return y
