"""Turned: a weight in any format, for an input that is turned by a Hadamard matrix as it comes.

Ashkboos et al., QuaRot, NeurIPS 2024, arXiv:2404.00456, section 4 (its R4); block by block as in Egiazarian et al.,
MR-GPTQ, 2025, arXiv:2509.23202:

    x Wᵀ = (x H) (W H)ᵀ        H = diag(H_s, ..., H_s) = Hᵀ = H⁻¹,  H_s of entries ±1/√s

with s a power of two. W H is what is written down, and to that belongs what its format makes of an input; to everybody
else the weight looks as if it were W.

Shapes: o outputs, i inputs, n rows of input, f features of a token or example, s the size of what is turned together.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lissom.formats.sum import BASES, Sum
from lissom.formats.weight import Parts, Spec, Taken, Trainable, Weight, prefixed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Turned(Weight):
    """W H as `base`, and how many inputs are turned together."""

    base: Weight
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        return self.base.shape

    def dense(self) -> Float[Tensor, "o i"]:
        """W, in float32."""
        return hadamard(self.base.dense(), self.size)

    def activate(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """What the base makes of the turned input, turned back."""
        return there_and_back(self.base, x, self.shape[1], self.size)

    def linear(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """(x H) (W H)ᵀ."""
        return self.base.linear(hadamard(x, self.size))

    def hear(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ; on a GPU the base hears what was turned, which is not turned back in between."""
        return self.base.hear(hadamard(x, self.size)) if x.is_cuda else Weight.hear(self, x)

    def look_up(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n i"]:
        """Some rows of W."""
        return hadamard(self.base.look_up(index), self.size)

    def kept(self) -> Bool[Tensor, "o i"] | None:
        """None: what is zero in the base is not so in W."""
        return None

    def parts(self) -> dict[str, Tensor]:
        """Those of the base."""
        return self.base.parts()

    def spec(self) -> dict[str, Any]:
        """The spec of the base, and the size."""
        return {"format": "turned", "shape": list(self.shape), "size": self.size, "base": self.base.spec()}

    @classmethod
    def of_parts(cls, spec: Spec, parts: Parts) -> "Turned":
        """The inverse of `parts` and `spec`."""
        kinds: dict[str, type[Weight]] = {**BASES, "sum": Sum}
        kind = kinds[spec["base"]["format"]]
        return cls(base=kind.of_parts(spec["base"], parts), size=spec["size"])

    def trainable(self) -> Trainable:
        """What the base can move."""
        return TrainableTurned(self)


class TrainableTurned(Trainable):
    """W H, trainable in its own format."""

    def __init__(self, weight: Turned) -> None:
        super().__init__()
        self.base: Trainable = weight.base.trainable()
        self.inputs, self.size = weight.shape[1], weight.size

    def taken(self, dim: int, places: Int[Tensor, " n"]) -> Taken:
        """Of the base, along outputs; an input that is turned is turned as a whole."""
        return super().taken(dim, places) if dim else prefixed("base", self.base.taken(dim, places))

    def forward(self) -> Float[Tensor, "o i"]:
        """W."""
        return hadamard(self.base(), self.size)

    def activate(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """What the base makes of the turned input, turned back."""
        return there_and_back(self.base, x, self.inputs, self.size)

    def near(self, original: Float[Tensor, "o i"]) -> None:
        """The base as near as it gets to the original turned."""
        self.base.near(hadamard(original, self.size))

    def weight(self) -> Turned:
        """The matrix in its format."""
        return Turned(base=self.base.weight(), size=self.size)


def there_and_back(base: Weight | Trainable, x: Float[Tensor, "n f"], inputs: int, size: int) -> Float[Tensor, "n f"]:
    """What a base makes of a turned input, seen from before the turn.

    Of a convolution, whose rows are whole examples and not what its matrix reads, it is what it makes of it unturned.
    """
    if type(base).activate in (Weight.activate, Trainable.activate):
        return x
    if x.shape[1] != inputs:
        return base.activate(x)
    return hadamard(base.activate(hadamard(x, size)), size)


def hadamard(x: Float[Tensor, "... i"], size: int) -> Float[Tensor, "... i"]:
    """x H by butterflies, for `size` features at a time, a power of two that divides them."""
    step, turned = 1, x
    while step < size:
        a, b = turned.unflatten(-1, (-1, 2, step)).unbind(-2)
        turned = torch.stack([a + b, a - b], -2).flatten(-3)
        step *= 2
    scaled: Tensor = turned * size**-0.5
    return scaled


def largest_size(inputs: int) -> int:
    """The largest power of two that divides so many features."""
    return inputs & -inputs
