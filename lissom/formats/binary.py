"""Binary: one bit per weight, w = ± scale of its group of inputs in a row; with pruned weights, ternary.

Rastegari et al., XNOR-Net, ECCV 2016, arXiv:1603.05279, eq. (4)-(6).

Shapes: o outputs, i inputs, g groups of a row.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lissom.formats.plane import Plane
from lissom.formats.weight import Parts, Spec, Taken, Trainable, Weight, by_way_of, lying, stored, straight_through

EDGE = 0.01  # in scales: where a weight starts whose sign is not that of the original


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Binary(Weight):
    """Bit 1 stands for +scale, bit 0 for -scale."""

    plane: Plane
    scale: Float[Tensor, "o g"]

    @classmethod
    def of(
        cls, positive: Bool[Tensor, "o i"], scale: Float[Tensor, "o g"], kept: Bool[Tensor, "o i"] | None = None
    ) -> "Binary":
        """Pack signs; `scale` is stored in float16 where that holds it."""
        return cls(plane=Plane.of(positive.to(torch.uint8), 1, kept), scale=stored(scale))

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        return self.plane.shape

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.shape[1] // self.scale.shape[1]

    def dense(self) -> Float[Tensor, "o i"]:
        """The matrix in float32."""
        return torch.ops.lissom.binary_dense(  # type: ignore[no-any-return]
            self.plane.words, self.plane.mask, self.scale, *self.shape
        )

    def linear(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ."""
        return torch.ops.lissom.binary_linear(  # type: ignore[no-any-return]
            x, self.plane.words, self.plane.mask, self.scale, *self.shape
        )

    def kept(self) -> Bool[Tensor, "o i"] | None:
        """Which weights were not pruned; None means all."""
        return self.plane.kept()

    def parts(self) -> dict[str, Tensor]:
        """Signs, scales, and the bitmask where there is one."""
        found = {"_packed": self.plane.words, "_scale": self.scale, "_bitmask": self.plane.mask}
        return {name: part for name, part in found.items() if part is not None}

    def spec(self) -> dict[str, Any]:
        """Its shape."""
        return {"format": "binary", "shape": list(self.shape)}

    @classmethod
    def of_parts(cls, spec: Spec, parts: Parts) -> "Binary":
        """The inverse of `parts` and `spec`."""
        o, i = spec["shape"]
        plane = Plane(words=parts["_packed"], mask=parts.get("_bitmask"), shape=(o, i), bits=1)
        return cls(plane=plane, scale=parts["_scale"])

    def trainable(self) -> Trainable:
        """Latent weights behind the signs, and the groups' scales."""
        return TrainableBinary(self)


class TrainableBinary(Trainable):
    """Latent weights behind the signs, reached straight through, and the groups' scales.

    The gradient passes where |latent| <= 1 (Courbariaux et al., NeurIPS 2016, arXiv:1602.02830, eq. 4), the latent
    being measured in units of the group's scale. It starts at ±1/2, so that a sign can still turn.
    """

    scale: Tensor
    keep: Tensor | None

    def __init__(self, weight: Binary) -> None:
        super().__init__()
        self.latent = nn.Parameter((weight.plane.codes().float() - 0.5) * spread_out(weight.scale, weight.shape[1]))
        self.log_growth = nn.Parameter(torch.zeros_like(weight.scale, dtype=torch.float32))
        self.register_buffer("scale", weight.scale.float())
        self.register_buffer("keep", weight.kept())

    @torch.no_grad()
    def near(self, original: Float[Tensor, "o i"]) -> None:
        """On the side of zero that was chosen: as far out as the original up to the scale, or just there."""
        scale = spread_out(self.scale, self.latent.shape[1])
        side = torch.where(self.latent >= 0, 1.0, -1.0)
        self.latent.copy_(side * torch.minimum(torch.maximum(side * original, EDGE * scale), scale))

    def units(self) -> dict[nn.Parameter, Tensor]:
        """Half the distance of the two signs for weights; scales are relative already."""
        scale = spread_out(self._grown().detach(), self.latent.shape[1])
        return {self.latent: scale, self.log_growth: self.log_growth.new_ones(())}

    def _grown(self) -> Float[Tensor, "o g"]:
        grown = self.scale * self.log_growth.exp()
        return straight_through(grown, stored(grown.detach()).float())

    def taken(self, dim: int, places: Int[Tensor, " n"]) -> Taken:
        """Rows, or columns and whole groups of them."""
        return lying(self, (self.latent.shape[0], self.latent.shape[1]), dim, places)

    def forward(self) -> Float[Tensor, "o i"]:
        """The matrix of signs times scales."""
        inputs = self.latent.shape[1]
        unit = self.latent / spread_out(self.scale, inputs).clamp(min=torch.finfo(torch.float32).tiny)
        signs = straight_through(unit.clamp(-1, 1), torch.where(unit >= 0, 1.0, -1.0))
        matrix = signs * spread_out(self._grown(), inputs)
        return matrix if self.keep is None else matrix * self.keep

    @torch.no_grad()
    def weight(self) -> Binary:
        """The matrix in its format."""
        return Binary.of(self.latent >= 0, self._grown(), self.keep)


def spread_out(scale: Float[Tensor, "o g"], columns: int) -> Float[Tensor, "o i"]:
    """Each group's scale for every input of it."""
    return scale.float().repeat_interleave(columns // scale.shape[1], 1)


@torch.library.custom_op("lissom::binary_dense", mutates_args=())
def binary_dense(words: Tensor, mask: Tensor | None, scale: Tensor, rows: int, columns: int) -> Tensor:
    """± the group's scale, zero where the mask is."""
    plane = Plane(words=words, mask=mask, shape=(rows, columns), bits=1)
    matrix = (plane.codes().float() * 2 - 1) * spread_out(scale, columns)
    kept = plane.kept()
    return matrix if kept is None else matrix * kept


@binary_dense.register_fake
def _(words: Tensor, mask: Tensor | None, scale: Tensor, rows: int, columns: int) -> Tensor:
    return scale.new_empty((rows, columns), dtype=torch.float32)


@torch.library.custom_op("lissom::binary_linear", mutates_args=())
def binary_linear(x: Tensor, words: Tensor, mask: Tensor | None, scale: Tensor, rows: int, columns: int) -> Tensor:
    """x Wᵀ by way of the dense matrix."""
    return torch.nn.functional.linear(x, binary_dense(words, mask, scale, rows, columns).to(x.dtype))


binary_linear.register_fake(by_way_of(binary_dense))
