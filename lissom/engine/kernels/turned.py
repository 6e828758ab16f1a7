"""An input that is turned as it comes, and what lies behind the turn on the kernel that fits it.

    y = kernel(x H)        H_s = H_a ⊗ H_b,  s = a b:  each s features as a matrix X of a by b become H_a X H_b

That is two operations where the butterflies are some two dozen, which for few rows is what counts.

Shapes: o outputs, i inputs, s the size of what is turned together.
"""

from collections.abc import Callable

import torch
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

    left: Tensor
    right: Tensor

    def __init__(self, base: nn.Module, size: int) -> None:
        super().__init__()
        self.base, self.size = base, size
        a = 1 << (size.bit_length() // 2)
        for name, part in (("left", a), ("right", size // a)):
            self.register_buffer(name, hadamard(torch.eye(part), part))

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """(x H) (W H)ᵀ + b."""
        parts = x.unflatten(-1, (-1, len(self.left), len(self.right)))
        turned = self.left.to(x.dtype) @ (parts @ self.right.to(x.dtype))
        y: Tensor = self.base(turned.flatten(-3))
        return y
