"""An input that is turned as it comes: butterflies, and what lies behind them on the kernel that fits it.

    y = kernel(x H)

Shapes: o outputs, i inputs.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from lissom.formats import CompressedLinear, Turned, wrap
from lissom.formats.turned import hadamard


def turned_layer(
    layer: CompressedLinear, fitting: Callable[[CompressedLinear], nn.Module | None]
) -> "TurnedLinear | None":
    """The layer with its turned weight on a kernel, which `fitting` finds, or None where there is none."""
    weight = layer.weight
    if not isinstance(weight, Turned):
        return None
    base = wrap(layer, weight.base)
    assert isinstance(base, CompressedLinear)
    lowered = fitting(base)
    return None if lowered is None else TurnedLinear(lowered, weight.size)


class TurnedLinear(nn.Module):
    """A layer that is given its input turned."""

    def __init__(self, base: nn.Module, size: int) -> None:
        super().__init__()
        self.base, self.size = base, size

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """(x H) (W H)ᵀ + b."""
        y: Tensor = self.base(hadamard(x, self.size))
        return y
