"""Dense: the matrix as it is."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from lissom.formats.weight import Parts, Spec, Trainable, Weight, straight_through


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

    def forward(self) -> Float[Tensor, "o i"]:
        """The matrix."""
        return straight_through(self.values, self.values.detach().to(self.stored_as).float())

    def weight(self) -> Dense:
        """The matrix in its format."""
        return Dense(values=self.values.detach().to(self.stored_as).clone())
