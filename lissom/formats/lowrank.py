"""LowRank: a matrix as the product of two narrow ones, W = A B; it is never formed to run a layer.

The factors are matrices themselves, written in any of a few formats: float16, or integers once they are quantized.
There is no mask: what a product is at one place cannot be set without changing a row and a column.

Shapes: o outputs, i inputs, r the rank.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lissom.formats.affine import Affine
from lissom.formats.dense import Dense
from lissom.formats.weight import Parts, Spec, Taken, Trainable, Weight, nested, prefixed

FACTORS: dict[str, type[Weight]] = {"dense": Dense, "affine": Affine}
LEFT, RIGHT = "_left", "_right"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowRank(Weight):
    """A (o, r) times B (r, i)."""

    a: Weight
    b: Weight

    @classmethod
    def of(cls, a: Float[Tensor, "o r"], b: Float[Tensor, "r i"]) -> "LowRank":
        """The factors in float16 where that holds them."""
        return cls(a=half(a), b=half(b))

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        return self.a.shape[0], self.b.shape[1]

    @property
    def rank(self) -> int:
        """The columns of A."""
        return self.b.shape[0]

    def dense(self) -> Float[Tensor, "o i"]:
        """The matrix in float32."""
        return self.a.dense() @ self.b.dense()

    def linear(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Bᵀ Aᵀ: two small products."""
        return self.a.linear(self.b.linear(x))

    def look_up(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n i"]:
        """Some rows of the matrix: those of A, times B."""
        return self.a.look_up(index) @ self.b.dense()

    def kept(self) -> Bool[Tensor, "o i"] | None:
        """Nothing is pruned."""
        return None

    def parts(self) -> dict[str, Tensor]:
        """The parts of both factors."""
        left = {LEFT + name: part for name, part in self.a.parts().items()}
        return left | {RIGHT + name: part for name, part in self.b.parts().items()}

    def spec(self) -> dict[str, Any]:
        """Shape, and the factors' own specs."""
        return {"format": "lowrank", "shape": list(self.shape), "left": self.a.spec(), "right": self.b.spec()}

    @classmethod
    def of_parts(cls, spec: Spec, parts: Parts) -> "LowRank":
        """The inverse of `parts` and `spec`."""
        left, right = spec["left"], spec["right"]
        return cls(
            a=FACTORS[left["format"]].of_parts(left, nested(parts, LEFT)),
            b=FACTORS[right["format"]].of_parts(right, nested(parts, RIGHT)),
        )

    def trainable(self) -> Trainable:
        """Both factors."""
        return TrainableLowRank(self)


class TrainableLowRank(Trainable):
    """Both factors, each trainable in its own format; the rank stays."""

    def __init__(self, weight: LowRank) -> None:
        super().__init__()
        self.a, self.b = weight.a.trainable(), weight.b.trainable()

    def taken(self, dim: int, places: Int[Tensor, " n"]) -> Taken:
        """Of outputs rows of A, of inputs columns of B; the other factor belongs to all."""
        name = ("a", "b")[dim]
        factor = (self.a, self.b)[dim]
        return prefixed(name, factor.taken(dim, places))

    def forward(self) -> Float[Tensor, "o i"]:
        """The matrix."""
        product: Tensor = self.a() @ self.b()
        return product

    def weight(self) -> LowRank:
        """The matrix in its format."""
        return LowRank(a=self.a.weight(), b=self.b.weight())


def half(factor: Float[Tensor, "o i"]) -> Dense:
    """A factor in float16, or in float32 where its largest entry is too large or too small for that.

    Unlike a scale's, the smallest entries of a factor may lose digits: they are added to larger ones.
    """
    largest = factor.abs().amax() if factor.numel() else factor.new_zeros(())
    fits = bool((largest == 0) | ((largest <= torch.finfo(torch.float16).max) & (largest >= 2**-10)))
    return Dense(values=factor.to(torch.float16 if fits else torch.float32).contiguous())
