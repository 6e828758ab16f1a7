"""Affine: integers on a grid, w = (code - zero) * scale, one scale (and zero) for each group of inputs in a row.

The grid is symmetric where `zero` is None: code 2^(b-1) stands for 0. A pruned weight is exactly 0 whatever the grid.

Shapes: o outputs, i inputs, g groups of a row.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int16, UInt8
from torch import Tensor, nn

from lissom.formats.plane import Plane
from lissom.formats.weight import Parts, Spec, Taken, Trainable, Weight, by_way_of, lying, stored, straight_through

STEPS = 127  # the most steps that a scale can have
CELL = 0.49  # how far from its point of the grid a weight may be and still be rounded to it, whatever the arithmetic


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Affine(Weight):
    """Integer codes of 2 to 8 bits; `group` inputs share a scale, which must divide i.

    With a `step` the scales of a row are whole multiples of it, stored in a byte each.
    """

    plane: Plane
    scale: Float[Tensor, "o g"]
    zero: Plane | None
    step: Float[Tensor, "o 1"] | None = None

    @classmethod
    def of(
        cls,
        codes: UInt8[Tensor, "o i"],
        scale: Float[Tensor, "o g"],
        zero: UInt8[Tensor, "o g"] | None,
        bits: int,
        kept: Bool[Tensor, "o i"] | None = None,
        step: Float[Tensor, "o 1"] | None = None,
    ) -> "Affine":
        """Pack codes; `scale`, or else `step`, is stored in float16 where that holds it."""
        packed_zero = None if zero is None else Plane.of(zero, bits)
        step = None if step is None else stored(step)
        scale = stored(scale) if step is None else held(scale, step)
        return cls(plane=Plane.of(codes, bits, kept), scale=scale, zero=packed_zero, step=step)

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
        return torch.ops.lissom.affine_dense(*self.flat())  # type: ignore[no-any-return]

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
        return torch.ops.lissom.affine_linear(x, *self.flat())  # type: ignore[no-any-return]

    def flat(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, int, int, int]:
        """What the operators are given."""
        zero = None if self.zero is None else self.zero.words
        return self.plane.words, self.plane.mask, self.scale, zero, self.bits, *self.shape

    def kept(self) -> Bool[Tensor, "o i"] | None:
        """Which weights were not pruned; None means all."""
        return self.plane.kept()

    def parts(self) -> dict[str, Tensor]:
        """Codes, scales, and zeros and bitmask where there are any, by their compressed-tensors names."""
        zero = None if self.zero is None else self.zero.words
        scale = self.scale if self.step is None else multiples(self.scale, self.step).to(torch.int8)
        found = {"_packed": self.plane.words, "_scale": scale, "_scale_step": self.step}
        found |= {"_zero_point": zero, "_bitmask": self.plane.mask}
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
        step = parts.get("_scale_step")
        return cls(plane=plane, scale=scale if step is None else scale.float() * step.float(), zero=zero, step=step)

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
    step: Tensor | None
    zero: Tensor
    keep: Tensor | None

    def __init__(self, weight: Affine) -> None:
        super().__init__()
        self.bits, self.symmetric = weight.bits, weight.zero is None
        self.latent = nn.Parameter(weight.dense())
        self.log_growth = nn.Parameter(torch.zeros_like(weight.scale, dtype=torch.float32))
        self.register_buffer("scale", weight.scale.float())
        self.register_buffer("step", weight.step)
        self.register_buffer("zero", weight.zeros())
        self.register_buffer("keep", weight.kept())

    @torch.no_grad()
    def near(self, original: Float[Tensor, "o i"]) -> None:
        """Into the cell of each weight's code, on the side of the original; beyond the last code, to its centre."""
        scale = self._grown().unsqueeze(-1)
        code = self._codes(scale.squeeze(-1)) - self.zero.unsqueeze(-1)
        offset = original.unflatten(1, (scale.shape[1], -1)) / scale - code
        self.latent.copy_(((code + offset.clamp(-CELL, CELL)) * scale).flatten(1))

    def units(self) -> dict[nn.Parameter, Tensor]:
        """Points of the grid for weights; scales are relative already."""
        scale = self._grown().detach().abs()
        return {
            self.latent: scale.repeat_interleave(self.latent.shape[1] // scale.shape[1], 1),
            self.log_growth: self.log_growth.new_ones(()),
        }

    def _grown(self) -> Float[Tensor, "o g"]:
        grown = self.scale * self.log_growth.exp()
        return straight_through(grown, held(grown.detach(), self.step))

    def _codes(self, scale: Float[Tensor, "o g"]) -> Float[Tensor, "o g k"]:
        grouped = self.latent.unflatten(1, (scale.shape[1], -1)) / scale.unsqueeze(-1)
        return (straight_through(grouped, grouped.round()) + self.zero.unsqueeze(-1)).clamp(0, 2**self.bits - 1)

    def taken(self, dim: int, places: Int[Tensor, " n"]) -> Taken:
        """Rows, or columns and whole groups of them."""
        return lying(self, (self.latent.shape[0], self.latent.shape[1]), dim, places)

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
        return Affine.of(codes, scale, zero, self.bits, self.keep, self.step)


def multiples(scale: Float[Tensor, "o g"], step: Float[Tensor, "o 1"]) -> Float[Tensor, "o g"]:
    """The whole numbers of steps nearest to the scales; never 0."""
    count = (scale.float() / step.float()).round().clamp(-STEPS, STEPS)
    return torch.where(count == 0, torch.where(scale < 0, -1.0, 1.0), count)


def held(scale: Float[Tensor, "o g"], step: Float[Tensor, "o 1"] | None) -> Float[Tensor, "o g"]:
    """A scale as storing leaves it: a half float, or a whole number of steps."""
    return stored(scale).float() if step is None else multiples(scale, step) * step.float()


def affine_codes(
    words: Tensor, mask: Tensor | None, scale: Tensor, zero: Tensor | None, bits: int, rows: int, columns: int
) -> Int16[Tensor, "o g k"]:
    """code - zero, 0 where the mask is."""
    plane = Plane(words=words, mask=mask, shape=(rows, columns), bits=bits)
    groups = scale.shape[1]
    codes: Tensor = plane.codes().to(torch.int16).unflatten(1, (groups, -1))
    if zero is None:
        codes -= 2 ** (bits - 1)
    else:
        codes -= Plane(words=zero, mask=None, shape=(rows, groups), bits=bits).codes().unsqueeze(-1)
    kept = plane.kept()
    if kept is not None:
        codes *= kept.unflatten(1, (groups, -1))
    return codes


@torch.library.custom_op("lissom::affine_dense", mutates_args=())
def affine_dense(
    words: Tensor, mask: Tensor | None, scale: Tensor, zero: Tensor | None, bits: int, rows: int, columns: int
) -> Tensor:
    """(code - zero) * scale, zero where the mask is."""
    codes = affine_codes(words, mask, scale, zero, bits, rows, columns)
    matrix: Tensor = codes.float().mul_(scale.float().unsqueeze(-1)).flatten(1)
    return matrix


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


affine_linear.register_fake(by_way_of(affine_dense))
