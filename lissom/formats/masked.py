"""Masked: the weights that were kept, and a bit for each weight that says which they are."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from lissom.formats.plane import bitmask, from_bitmask, spread
from lissom.formats.weight import Parts, Spec, Taken, Trainable, Weight, straight_through


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Masked(Weight):
    """A pruned matrix; `values` are the kept weights in row-major order (k of them)."""

    values: Float[Tensor, " k"]
    mask: UInt8[Tensor, " m"]
    size: tuple[int, int]

    @classmethod
    def of(cls, values: Float[Tensor, "o i"], kept: Bool[Tensor, "o i"]) -> "Masked":
        """Keep `values` where `kept`."""
        return cls(values=values[kept].clone(), mask=bitmask(kept), size=(values.shape[0], values.shape[1]))

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        return self.size

    def dense(self) -> Float[Tensor, "o i"]:
        """The matrix in float32, zero where pruned."""
        return torch.ops.lissom.masked_dense(self.values, self.mask, *self.size)  # type: ignore[no-any-return]

    def kept(self) -> Bool[Tensor, "o i"] | None:
        """Which weights were not pruned."""
        return from_bitmask(self.mask, self.size)

    def parts(self) -> dict[str, Tensor]:
        """Values and bitmask."""
        return {"_compressed": self.values, "_bitmask": self.mask}

    def spec(self) -> dict[str, Any]:
        """Its shape."""
        return {"format": "masked", "shape": list(self.size)}

    @classmethod
    def of_parts(cls, spec: Spec, parts: Parts) -> "Masked":
        """From values and bitmask."""
        return cls(values=parts["_compressed"], mask=parts["_bitmask"], size=tuple(spec["shape"]))

    def trainable(self) -> Trainable:
        """The kept values as a parameter; what was pruned stays pruned."""
        return TrainableMasked(self)


class TrainableMasked(Trainable):
    """The kept values as a parameter in float32, rounded straight through to the type they are stored in."""

    keep: Tensor

    def __init__(self, weight: Masked) -> None:
        super().__init__()
        self.stored_as = weight.values.dtype
        self.values = nn.Parameter(weight.values.float().clone())
        self.register_buffer("keep", weight.kept())

    def taken(self, dim: int, places: Int[Tensor, " n"]) -> Taken:
        """The kept values of these rows or columns."""
        chosen = torch.zeros(self.keep.shape[dim], dtype=torch.bool, device=self.keep.device)
        chosen[places] = True
        wanted = chosen.unsqueeze(1 - dim).expand_as(self.keep)[self.keep]
        return {"keep": (dim, places), "values": (0, wanted.nonzero().flatten())}

    def forward(self) -> Float[Tensor, "o i"]:
        """The matrix."""
        rounded = straight_through(self.values, self.values.detach().to(self.stored_as).float())
        return spread(rounded, self.keep)

    def weight(self) -> Masked:
        """The matrix in its format."""
        shape = (self.keep.shape[0], self.keep.shape[1])
        return Masked(values=self.values.detach().to(self.stored_as).clone(), mask=bitmask(self.keep), size=shape)


def sparse(values: Float[Tensor, "*n"]) -> bool:
    """Whether a matrix has so many zeros that it takes fewer bytes without them."""
    zeros = values.numel() - int(values.count_nonzero())
    return zeros * 8 * values.element_size() > values.numel()


@torch.library.custom_op("lissom::masked_dense", mutates_args=())
def masked_dense(values: Tensor, mask: Tensor, rows: int, columns: int) -> Tensor:
    """Spread the kept values over zeros."""
    return spread(values.float(), from_bitmask(mask, (rows, columns)))


@masked_dense.register_fake
def _(values: Tensor, mask: Tensor, rows: int, columns: int) -> Tensor:
    return values.new_empty((rows, columns), dtype=torch.float32)
