"""Ternary: each weight is -scale, 0 or +scale; five of them in a byte, 1.6 bits a weight.

Li, Zhang, Liu, TWN, 2016, arXiv:1605.04711, eq. (1); five trits in a byte since 3⁵ = 243 <= 256. A pruned weight is one
that is zero for good, so that it takes a bit more to say which zeros those are: only the others are then packed.

Shapes: o outputs, i inputs, g groups of a row.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from lissom.formats.plane import bitmask, from_bitmask, spread
from lissom.formats.weight import Parts, Spec, Taken, Trainable, Weight, by_way_of, lying, stored, straight_through

PLACES = (1, 3, 9, 27, 81)  # of the five trits of a byte
CELL = 0.49  # how far from its trit a latent weight may start, in scales, and still be rounded to it
REACH = 1.5  # how far beyond the scale it may start
TINY = torch.finfo(torch.float32).tiny


def pack(trits: UInt8[Tensor, "o i"]) -> UInt8[Tensor, "o m"]:
    """Each row's trits (0, 1 or 2), five in a byte, the first one lowest; the last byte is filled up with zeros."""
    rows, columns = trits.shape
    padded = torch.nn.functional.pad(trits, (0, -columns % len(PLACES))).reshape(rows, -1, len(PLACES))
    return (padded * torch.tensor(PLACES, dtype=torch.uint8, device=trits.device)).sum(-1, dtype=torch.uint8)


def unpack(octets: UInt8[Tensor, "o m"], columns: int) -> UInt8[Tensor, "o i"]:
    """Read `columns` trits of each row back, by a table of the 243 bytes there are."""
    byte = torch.arange(3 ** len(PLACES), device=octets.device)
    table = torch.stack([byte // place % 3 for place in PLACES], 1).to(torch.uint8)
    return table[octets.int()].flatten(1)[:, :columns].contiguous()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ternary(Weight):
    """Trit 0 stands for -scale, 1 for zero, 2 for +scale."""

    octets: UInt8[Tensor, "n m"]
    mask: UInt8[Tensor, " b"] | None
    scale: Float[Tensor, "o g"]
    size: tuple[int, int]

    @classmethod
    def of(
        cls, trits: UInt8[Tensor, "o i"], scale: Float[Tensor, "o g"], kept: Bool[Tensor, "o i"] | None = None
    ) -> "Ternary":
        """Pack trits; with `kept`, only those. The scale is stored in float16 where that holds it."""
        size = (trits.shape[0], trits.shape[1])
        if kept is None or bool(kept.all()):
            return cls(octets=pack(trits), mask=None, scale=stored(scale), size=size)
        return cls(octets=pack(trits[kept].reshape(1, -1)), mask=bitmask(kept), scale=stored(scale), size=size)

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        return self.size

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.shape[1] // self.scale.shape[1]

    def trits(self) -> UInt8[Tensor, "o i"]:
        """0, 1 or 2 for each weight; a pruned one is 1."""
        return read(self.octets, self.mask, *self.size)

    def dense(self) -> Float[Tensor, "o i"]:
        """The matrix in float32."""
        return torch.ops.lissom.ternary_dense(  # type: ignore[no-any-return]
            self.octets, self.mask, self.scale, *self.size
        )

    def linear(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ."""
        return torch.ops.lissom.ternary_linear(  # type: ignore[no-any-return]
            x, self.octets, self.mask, self.scale, *self.size
        )

    def kept(self) -> Bool[Tensor, "o i"] | None:
        """Which weights were not pruned; None means all."""
        return None if self.mask is None else from_bitmask(self.mask, self.size)

    def parts(self) -> dict[str, Tensor]:
        """Trits, scales, and the bitmask where there is one."""
        found = {"_packed": self.octets, "_scale": self.scale, "_bitmask": self.mask}
        return {name: part for name, part in found.items() if part is not None}

    def spec(self) -> dict[str, Any]:
        """Its shape."""
        return {"format": "ternary", "shape": list(self.shape)}

    @classmethod
    def of_parts(cls, spec: Spec, parts: Parts) -> "Ternary":
        """The inverse of `parts` and `spec`."""
        o, i = spec["shape"]
        return cls(octets=parts["_packed"], mask=parts.get("_bitmask"), scale=parts["_scale"], size=(o, i))

    def trainable(self) -> Trainable:
        """Latent weights behind the trits, and the groups' scales."""
        return TrainableTernary(self)


class TrainableTernary(Trainable):
    """Latent weights behind the trits, reached straight through the rounding, and the groups' scales.

    A weight is round(latent / scale) within ±1, as in BitNet b1.58 (Ma et al., 2024, arXiv:2402.17764, eq. 1-3), where
    the scale is the mean magnitude; here it is learned (Esser et al., ICLR 2020, arXiv:1902.08153, eq. 3, of its
    logarithm), so that a trained weight is never rounded anew. A weight that was pruned has no gradient.
    """

    scale: Tensor
    keep: Tensor | None

    def __init__(self, weight: Ternary) -> None:
        super().__init__()
        self.latent = nn.Parameter(weight.dense())
        self.log_growth = nn.Parameter(torch.zeros_like(weight.scale, dtype=torch.float32))
        self.register_buffer("scale", weight.scale.float())
        self.register_buffer("keep", weight.kept())

    @torch.no_grad()
    def near(self, original: Float[Tensor, "o i"]) -> None:
        """Into the cell of each weight's trit, on the side of the original; a weight beyond ±scale as far as it is."""
        scale = self._grown().unsqueeze(-1)
        unit = original.unflatten(1, (scale.shape[1], -1)) / scale.clamp(min=TINY)
        trit = self._trits(scale.squeeze(-1))
        low, high = torch.where(trit < 0, -REACH, trit - CELL), torch.where(trit > 0, REACH, trit + CELL)
        self.latent.copy_((torch.minimum(torch.maximum(unit, low), high) * scale).flatten(1))

    def units(self) -> dict[nn.Parameter, Tensor]:
        """Points of the grid for weights; scales are relative already."""
        scale = self._grown().detach()
        return {
            self.latent: scale.repeat_interleave(self.latent.shape[1] // scale.shape[1], 1),
            self.log_growth: self.log_growth.new_ones(()),
        }

    def _grown(self) -> Float[Tensor, "o g"]:
        grown = self.scale * self.log_growth.exp()
        return straight_through(grown, stored(grown.detach()).float())

    def _trits(self, scale: Float[Tensor, "o g"]) -> Float[Tensor, "o g k"]:
        unit = self.latent.unflatten(1, (scale.shape[1], -1)) / scale.unsqueeze(-1).clamp(min=TINY)
        return straight_through(unit, unit.detach().round()).clamp(-1, 1)

    def taken(self, dim: int, places: Int[Tensor, " n"]) -> Taken:
        """Rows, or columns and whole groups of them."""
        return lying(self, (self.latent.shape[0], self.latent.shape[1]), dim, places)

    def forward(self) -> Float[Tensor, "o i"]:
        """The matrix of trits times scales."""
        scale = self._grown()
        matrix = (self._trits(scale) * scale.unsqueeze(-1)).flatten(1)
        return matrix if self.keep is None else matrix * self.keep

    @torch.no_grad()
    def weight(self) -> Ternary:
        """The matrix in its format."""
        scale = self._grown()
        return Ternary.of((self._trits(scale) + 1).flatten(1).to(torch.uint8), scale, self.keep)


def read(octets: Tensor, mask: Tensor | None, rows: int, columns: int) -> UInt8[Tensor, "o i"]:
    """The trits of a matrix; 1 where a weight was pruned."""
    if mask is None:
        return unpack(octets, columns)
    kept = from_bitmask(mask, (rows, columns))
    held = unpack(octets, octets.shape[1] * len(PLACES))[0]
    return torch.where(kept, spread(held, kept), torch.ones((), dtype=torch.uint8, device=held.device))


@torch.library.custom_op("lissom::ternary_dense", mutates_args=())
def ternary_dense(octets: Tensor, mask: Tensor | None, scale: Tensor, rows: int, columns: int) -> Tensor:
    """(trit - 1) times the group's scale."""
    trits = read(octets, mask, rows, columns).float() - 1
    matrix: Tensor = (trits.unflatten(1, (scale.shape[1], -1)) * scale.float().unsqueeze(-1)).flatten(1)
    return matrix


@ternary_dense.register_fake
def _(octets: Tensor, mask: Tensor | None, scale: Tensor, rows: int, columns: int) -> Tensor:
    return scale.new_empty((rows, columns), dtype=torch.float32)


@torch.library.custom_op("lissom::ternary_linear", mutates_args=())
def ternary_linear(x: Tensor, octets: Tensor, mask: Tensor | None, scale: Tensor, rows: int, columns: int) -> Tensor:
    """x Wᵀ by way of the dense matrix."""
    return torch.nn.functional.linear(x, ternary_dense(octets, mask, scale, rows, columns).to(x.dtype))


ternary_linear.register_fake(by_way_of(ternary_dense))
