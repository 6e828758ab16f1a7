"""Binary: one bit per weight, w = ± scale of its row; with pruned weights, ternary.

Rastegari et al., XNOR-Net, ECCV 2016, arXiv:1603.05279, eq. (4)-(6).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lissom.formats.plane import Plane
from lissom.formats.weight import Parts, Spec, Trainable, Weight, stored, straight_through


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Binary(Weight):
    """Bit 1 stands for +scale, bit 0 for -scale."""

    plane: Plane
    scale: Float[Tensor, " o"]

    @classmethod
    def of(
        cls, positive: Bool[Tensor, "o i"], scale: Float[Tensor, " o"], kept: Bool[Tensor, "o i"] | None = None
    ) -> "Binary":
        """Pack signs; `scale` is stored in float16 where that holds it."""
        return cls(plane=Plane.of(positive.to(torch.uint8), 1, kept), scale=stored(scale))

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        return self.plane.shape

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
        """Latent weights behind the signs, and the rows' scales."""
        return TrainableBinary(self)


class TrainableBinary(Trainable):
    """Latent weights behind the signs, reached straight through, and the rows' scales.

    The gradient passes where |latent| <= 1 (Courbariaux et al., NeurIPS 2016, arXiv:1602.02830, eq. 4), the latent
    being measured in units of the row's scale. It starts at ±1/2, so that a sign can still turn.
    """

    scale: Tensor
    keep: Tensor | None

    def __init__(self, weight: Binary) -> None:
        super().__init__()
        self.latent = nn.Parameter((weight.plane.codes().float() - 0.5) * weight.scale.float().unsqueeze(1))
        self.log_growth = nn.Parameter(torch.zeros_like(weight.scale, dtype=torch.float32))
        self.register_buffer("scale", weight.scale.float())
        self.register_buffer("keep", weight.kept())

    def _grown(self) -> Float[Tensor, " o"]:
        grown = self.scale * self.log_growth.exp()
        return straight_through(grown, stored(grown.detach()).float())

    def forward(self) -> Float[Tensor, "o i"]:
        """The matrix of signs times scales."""
        unit = self.latent / self.scale.unsqueeze(1).clamp(min=torch.finfo(torch.float32).tiny)
        signs = straight_through(unit.clamp(-1, 1), torch.where(unit >= 0, 1.0, -1.0))
        matrix = signs * self._grown().unsqueeze(1)
        return matrix if self.keep is None else matrix * self.keep

    @torch.no_grad()
    def weight(self) -> Binary:
        """The matrix in its format."""
        return Binary.of(self.latent >= 0, self._grown(), self.keep)


@torch.library.custom_op("lissom::binary_dense", mutates_args=())
def binary_dense(words: Tensor, mask: Tensor | None, scale: Tensor, rows: int, columns: int) -> Tensor:
    """± the row's scale, zero where the mask is."""
    plane = Plane(words=words, mask=mask, shape=(rows, columns), bits=1)
    matrix = (plane.codes().float() * 2 - 1) * scale.float().unsqueeze(1)
    kept = plane.kept()
    return matrix if kept is None else matrix * kept


@binary_dense.register_fake
def _(words: Tensor, mask: Tensor | None, scale: Tensor, rows: int, columns: int) -> Tensor:
    return scale.new_empty((rows, columns), dtype=torch.float32)


@torch.library.custom_op("lissom::binary_linear", mutates_args=())
def binary_linear(x: Tensor, words: Tensor, mask: Tensor | None, scale: Tensor, rows: int, columns: int) -> Tensor:
    """x Wᵀ by way of the dense matrix."""
    return torch.nn.functional.linear(x, binary_dense(words, mask, scale, rows, columns).to(x.dtype))


@binary_linear.register_fake
def _(x: Tensor, words: Tensor, mask: Tensor | None, scale: Tensor, rows: int, columns: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))
