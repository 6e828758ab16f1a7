"""Affine: integers on a grid, w = (code - zero) * scale, one scale (and zero) for each group of inputs in a row.

The grid is symmetric where `zero` is None: code 2^(b-1) stands for 0. A pruned weight is exactly 0 whatever the grid.

Shapes: o outputs, i inputs, g groups of a row.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from lissom.formats.plane import Plane
from lissom.formats.weight import Parts, Spec, Trainable, Weight, stored, straight_through


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Affine(Weight):
    """Integer codes of 2 to 8 bits; `group` inputs share a scale, which must divide i."""

    plane: Plane
    scale: Float[Tensor, "o g"]
    zero: Plane | None

    @classmethod
    def of(
        cls,
        codes: UInt8[Tensor, "o i"],
        scale: Float[Tensor, "o g"],
        zero: UInt8[Tensor, "o g"] | None,
        bits: int,
        kept: Bool[Tensor, "o i"] | None = None,
    ) -> "Affine":
        """Pack codes; `scale` is stored in float16 where that holds it."""
        packed_zero = None if zero is None else Plane.of(zero, bits)
        return cls(plane=Plane.of(codes, bits, kept), scale=stored(scale), zero=packed_zero)

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        return self.plane.shape

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.plane.bits

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.shape[1] // self.scale.shape[1]

    def zeros(self) -> Float[Tensor, "o g"]:
        """The code that stands for 0 in each group, as a float."""
        if self.zero is None:
            return torch.full_like(self.scale, 2 ** (self.bits - 1), dtype=torch.float32)
        return self.zero.codes().float()

    def dense(self) -> Float[Tensor, "o i"]:
        """The matrix in float32."""
        return torch.ops.lissom.affine_dense(*self._flat())  # type: ignore[no-any-return]

    def look_up(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n i"]:
        """Some rows of the dense matrix; only they are decoded, unless weights were pruned."""
        if self.plane.mask is not None:
            return self.dense()[index]
        words, scale = self.plane.words[index], self.scale[index]
        zero = None if self.zero is None else self.zero.words[index]
        shape = (index.shape[0], self.shape[1])
        return torch.ops.lissom.affine_dense(words, None, scale, zero, self.bits, *shape)  # type: ignore[no-any-return]

    def linear(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ."""
        return torch.ops.lissom.affine_linear(x, *self._flat())  # type: ignore[no-any-return]

    def _flat(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, int, int, int]:
        zero = None if self.zero is None else self.zero.words
        return self.plane.words, self.plane.mask, self.scale, zero, self.bits, *self.shape

    def kept(self) -> Bool[Tensor, "o i"] | None:
        """Which weights were not pruned; None means all."""
        return self.plane.kept()

    def parts(self) -> dict[str, Tensor]:
        """Codes, scales, and zeros and bitmask where there are any, by their compressed-tensors names."""
        zero = None if self.zero is None else self.zero.words
        found = {"_packed": self.plane.words, "_scale": self.scale, "_zero_point": zero, "_bitmask": self.plane.mask}
        return {name: part for name, part in found.items() if part is not None}

    def spec(self) -> dict[str, Any]:
        """Shape, bits and group."""
        symmetric = self.zero is None
        shape = list(self.shape)
        return {"format": "affine", "shape": shape, "bits": self.bits, "group": self.group, "symmetric": symmetric}

    @classmethod
    def of_parts(cls, spec: Spec, parts: Parts) -> "Affine":
        """The inverse of `parts` and `spec`."""
        (o, i), bits, scale = spec["shape"], spec["bits"], parts["_scale"]
        plane = Plane(words=parts["_packed"], mask=parts.get("_bitmask"), shape=(o, i), bits=bits)
        words = parts.get("_zero_point")
        zero = None if words is None else Plane(words=words, mask=None, shape=(o, scale.shape[1]), bits=bits)
        return cls(plane=plane, scale=scale, zero=zero)

    def trainable(self) -> Trainable:
        """Latent weights behind the grid, and the grid's scales."""
        return TrainableAffine(self)


class TrainableAffine(Trainable):
    """Latent weights behind the grid, reached straight through the rounding, and the grid's scales.

    The gradient of the scale is that of learned step size quantization (Esser et al., ICLR 2020, arXiv:1902.08153,
    eq. 3), taken here of the logarithm of the step: an optimizer's step is then relative, whatever the weight's size.
    A weight that was pruned has no gradient.
    """

    scale: Tensor
    zero: Tensor
    keep: Tensor | None

    def __init__(self, weight: Affine) -> None:
        super().__init__()
        self.bits, self.symmetric = weight.bits, weight.zero is None
        self.latent = nn.Parameter(weight.dense())
        self.log_growth = nn.Parameter(torch.zeros_like(weight.scale, dtype=torch.float32))
        self.register_buffer("scale", weight.scale.float())
        self.register_buffer("zero", weight.zeros())
        self.register_buffer("keep", weight.kept())

    def _grown(self) -> Float[Tensor, "o g"]:
        grown = self.scale * self.log_growth.exp()
        return straight_through(grown, stored(grown.detach()).float())

    def _codes(self, scale: Float[Tensor, "o g"]) -> Float[Tensor, "o g k"]:
        grouped = self.latent.unflatten(1, (scale.shape[1], -1)) / scale.unsqueeze(-1)
        return (straight_through(grouped, grouped.round()) + self.zero.unsqueeze(-1)).clamp(0, 2**self.bits - 1)

    def forward(self) -> Float[Tensor, "o i"]:
        """The matrix on its grid."""
        scale = self._grown()
        matrix = ((self._codes(scale) - self.zero.unsqueeze(-1)) * scale.unsqueeze(-1)).flatten(1)
        return matrix if self.keep is None else matrix * self.keep

    @torch.no_grad()
    def weight(self) -> Affine:
        """The matrix in its format."""
        scale = self._grown()
        codes = self._codes(scale).flatten(1).to(torch.uint8)
        zero = None if self.symmetric else self.zero.to(torch.uint8)
        return Affine.of(codes, scale, zero, self.bits, self.keep)


@torch.library.custom_op("lissom::affine_dense", mutates_args=())
def affine_dense(
    words: Tensor, mask: Tensor | None, scale: Tensor, zero: Tensor | None, bits: int, rows: int, columns: int
) -> Tensor:
    """(code - zero) * scale, zero where the mask is."""
    plane = Plane(words=words, mask=mask, shape=(rows, columns), bits=bits)
    groups = scale.shape[1]
    if zero is None:
        offset = torch.full_like(scale, 2 ** (bits - 1), dtype=torch.float32)
    else:
        offset = Plane(words=zero, mask=None, shape=(rows, groups), bits=bits).codes().float()
    codes = plane.codes().float().unflatten(1, (groups, -1))
    matrix: Tensor = codes.sub_(offset.unsqueeze(-1)).mul_(scale.float().unsqueeze(-1)).flatten(1)
    kept = plane.kept()
    return matrix if kept is None else matrix * kept


@affine_dense.register_fake
def _(
    words: Tensor,
    mask: Tensor | None,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    rows: int | torch.SymInt,  # while a graph is traced, how many rows are looked up is a symbol
    columns: int,
) -> Tensor:
    return scale.new_empty((rows, columns), dtype=torch.float32)


@torch.library.custom_op("lissom::affine_linear", mutates_args=())
def affine_linear(
    x: Tensor,
    words: Tensor,
    mask: Tensor | None,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    rows: int,
    columns: int,
) -> Tensor:
    """x Wᵀ by way of the dense matrix: the definition that every kernel is held against."""
    return F.linear(x, affine_dense(words, mask, scale, zero, bits, rows, columns).to(x.dtype))


@affine_linear.register_fake
def _(
    x: Tensor,
    words: Tensor,
    mask: Tensor | None,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    rows: int,
    columns: int,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))
