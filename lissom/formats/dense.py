"""Dense: the matrix as it is."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lissom.formats.weight import Parts, Spec, Taken, Trainable, Weight, lying, straight_through

WIDENED = 2**24  # weights that become wider at a time, to be multiplied with


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dense(Weight):
    """Every weight in floating point, in the type it came in."""

    values: Float[Tensor, "o i"]

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        return self.values.shape[0], self.values.shape[1]

    def dense(self) -> Float[Tensor, "o i"]:
        """The matrix in float32."""
        return self.values.float()

    def linear(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ; a matrix in another type than x becomes of its type as it is used, some rows at a time."""
        o, i = self.shape
        lots = self.values.split(max(1, WIDENED // max(i, 1)))
        if self.values.dtype == x.dtype or len(lots) < 2:
            return F.linear(x, self.values.to(x.dtype))
        made = x.new_empty((*x.shape[:-1], o))
        for lot, room in zip(lots, made.split(len(lots[0]), -1), strict=True):
            room.copy_(F.linear(x, lot.to(x.dtype)))
        return made

    def look_up(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n i"]:
        """Some rows, in float32."""
        return self.values[index].float()

    def kept(self) -> Bool[Tensor, "o i"] | None:
        """Nothing is pruned."""
        return None

    def parts(self) -> dict[str, Tensor]:
        """`<layer>.weight` itself."""
        return {"": self.values}

    def spec(self) -> dict[str, Any]:
        """Its shape."""
        return {"format": "dense", "shape": list(self.shape)}

    @classmethod
    def of_parts(cls, spec: Spec, parts: Parts) -> "Dense":
        """From the one tensor."""
        return cls(values=parts[""])

    def trainable(self) -> Trainable:
        """The values as a parameter."""
        return TrainableDense(self)


class TrainableDense(Trainable):
    """The values as a parameter in float32, rounded straight through to the type they are stored in."""

    def __init__(self, weight: Dense) -> None:
        super().__init__()
        self.stored_as = weight.values.dtype
        self.values = nn.Parameter(weight.dense().clone())

    def taken(self, dim: int, places: Int[Tensor, " n"]) -> Taken:
        """Rows, or columns and whole groups of them."""
        return lying(self, (self.values.shape[0], self.values.shape[1]), dim, places)

    def forward(self) -> Float[Tensor, "o i"]:
        """The matrix."""
        return straight_through(self.values, self.values.detach().to(self.stored_as).float())

    def weight(self) -> Dense:
        """The matrix in its format."""
        return Dense(values=self.values.detach().to(self.stored_as).clone())
