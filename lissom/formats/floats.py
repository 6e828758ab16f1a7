"""Floats: small floating-point numbers, scaled in groups as hardware wants them.

    w = element · scale of the group [· scale of the whole]

    kind       element   group   scale of a group      of the whole
    fp8_e4m3   E4M3      a row   half float            -
    fp8_e5m2   E5M2      a row   half float            -
    mxfp8      E4M3      32      E8M0, power of two    -
    mxfp4      E2M1      32      E8M0, power of two    -
    nvfp4      E2M1      16      E4M3                  float32

OCP 8-bit Floating Point Specification, 2023; OCP Microscaling Formats Specification 1.0, 2023, sections 5 and 6;
NVIDIA, Pretraining Large Language Models with NVFP4, 2025, arXiv:2509.25149, section 2. A code is the element's bits:
sign, exponent, mantissa; two of E2M1 are in a byte, the first in its low half.

Shapes: o outputs, i inputs, g groups of a row.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor, nn

from lissom.formats.plane import Plane
from lissom.formats.weight import Parts, Spec, Taken, Trainable, Weight, by_way_of, lying, stored, straight_through

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # the magnitudes, by their codes


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What its elements and scales are; `group` is 0 where a row shares a scale, `element` None for E2M1."""

    element: torch.dtype | None
    group: int
    scale: torch.dtype | None  # None: a half float, or a float where that holds it not
    overall: bool = False

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return 4 if self.element is None else 8

    @property
    def largest(self) -> float:
        """The largest element."""
        return E2M1[-1] if self.element is None else torch.finfo(self.element).max

    def values(self, device: torch.device | None = None) -> Float[Tensor, " e"]:
        """The number that each code stands for; of 8-bit ones a few are not numbers, and never written."""
        if self.element is None:
            return torch.tensor([*E2M1, *(-v for v in E2M1)], device=device)
        return torch.arange(256, dtype=torch.uint8, device=device).view(self.element).float()

    def codes(self, x: Float[Tensor, "*n"]) -> UInt8[Tensor, "*n"]:
        """The nearest element of each number, of two the one whose last bit is 0; beyond the largest, the largest."""
        x = x.clamp(-self.largest, self.largest)
        if self.element is not None:
            return x.to(self.element).view(torch.uint8)
        code = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
        for lower, (one, next_one) in enumerate(pairwise(E2M1)):
            middle = (one + next_one) / 2
            code += (x.abs() >= middle) if lower % 2 else (x.abs() > middle)
        return code | (torch.signbit(x).to(torch.uint8) << 3)


KINDS = {
    "fp8_e4m3": Kind(element=torch.float8_e4m3fn, group=0, scale=None),
    "fp8_e5m2": Kind(element=torch.float8_e5m2, group=0, scale=None),
    "mxfp8": Kind(element=torch.float8_e4m3fn, group=32, scale=torch.float8_e8m0fnu),
    "mxfp4": Kind(element=None, group=32, scale=torch.float8_e8m0fnu),
    "nvfp4": Kind(element=None, group=16, scale=torch.float8_e4m3fn, overall=True),
}


def held(kind: Kind, scale: Float[Tensor, "o g"]) -> Shaped[Tensor, "o g"]:
    """Scales of groups as they are stored; powers of two as the byte of their exponent."""
    if kind.scale is None:
        return stored(scale)
    limits = torch.finfo(kind.scale)
    narrow = scale.clamp(limits.smallest_normal / (1 if kind.scale == torch.float8_e8m0fnu else 8), limits.max)
    narrow = narrow.to(kind.scale)
    return narrow.view(torch.uint8) if kind.scale == torch.float8_e8m0fnu else narrow


def read(scale: Shaped[Tensor, "o g"], overall: Float[Tensor, " 1"] | None) -> Float[Tensor, "o g"]:
    """Stored scales as floats, times the one of the whole."""
    scale = (scale.view(torch.float8_e8m0fnu) if scale.dtype == torch.uint8 else scale).float()
    return scale if overall is None else scale * overall


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Floats(Weight):
    """Codes of elements, and their scales as stored."""

    kind: str
    plane: Plane
    scale: Shaped[Tensor, "o g"]
    overall: Float[Tensor, " 1"] | None

    @classmethod
    def of(
        cls,
        w: Float[Tensor, "o i"],
        scale: Shaped[Tensor, "o g"],
        overall: Float[Tensor, " 1"] | None,
        kind: str,
        kept: Bool[Tensor, "o i"] | None = None,
    ) -> "Floats":
        """The nearest elements of a matrix under stored scales."""
        grouped = w.unflatten(1, (scale.shape[1], -1)) / read(scale, overall).unsqueeze(-1)
        codes = KINDS[kind].codes(grouped).flatten(1)
        return cls(kind=kind, plane=Plane.of(codes, KINDS[kind].bits, kept), scale=scale, overall=overall)

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        return self.plane.shape

    def dense(self) -> Float[Tensor, "o i"]:
        """The matrix in float32."""
        return torch.ops.lissom.floats_dense(*self._flat())  # type: ignore[no-any-return]

    def linear(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ."""
        return torch.ops.lissom.floats_linear(x, *self._flat())  # type: ignore[no-any-return]

    def _flat(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, str, int, int]:
        return self.plane.words, self.plane.mask, self.scale, self.overall, self.kind, *self.shape

    def kept(self) -> Bool[Tensor, "o i"] | None:
        """Which weights were not pruned; None means all."""
        return self.plane.kept()

    def parts(self) -> dict[str, Tensor]:
        """Codes, scales, and the bitmask where there is one."""
        found = {"_packed": self.plane.words, "_scale": self.scale, "_global_scale": self.overall}
        found["_bitmask"] = self.plane.mask
        return {name: part for name, part in found.items() if part is not None}

    def spec(self) -> dict[str, Any]:
        """Shape and kind."""
        return {"format": "floats", "shape": list(self.shape), "kind": self.kind}

    @classmethod
    def of_parts(cls, spec: Spec, parts: Parts) -> "Floats":
        """The inverse of `parts` and `spec`."""
        (o, i), kind = spec["shape"], spec["kind"]
        plane = Plane(words=parts["_packed"], mask=parts.get("_bitmask"), shape=(o, i), bits=KINDS[kind].bits)
        return cls(kind=kind, plane=plane, scale=parts["_scale"], overall=parts.get("_global_scale"))

    def trainable(self) -> Trainable:
        """Latent weights behind the elements; the scales stay."""
        return TrainableFloats(self)


class TrainableFloats(Trainable):
    """Latent weights, reached straight through the rounding; scales are fixed. A pruned weight has no gradient."""

    scale: Tensor
    overall: Tensor | None
    keep: Tensor | None

    def __init__(self, weight: Floats) -> None:
        super().__init__()
        self.kind = weight.kind
        self.latent = nn.Parameter(weight.dense())
        self.register_buffer("scale", weight.scale)
        self.register_buffer("overall", weight.overall)
        self.register_buffer("keep", weight.kept())

    @torch.no_grad()
    def near(self, original: Float[Tensor, "o i"]) -> None:
        """To the original, wherever that has the same element."""
        before, there = (self._written(w).plane.codes() for w in (self.latent, original))
        self.latent.copy_(torch.where(before == there, original, self.latent))

    def units(self) -> dict[nn.Parameter, Tensor]:
        """The distance of small elements."""
        scale = read(self.scale, self.overall).repeat_interleave(self.latent.shape[1] // self.scale.shape[1], 1)
        return {self.latent: torch.maximum(scale / 2, self.latent.detach().abs() / 8)}

    def _written(self, w: Float[Tensor, "o i"]) -> Floats:
        return Floats.of(w, self.scale, self.overall, self.kind, self.keep)

    def taken(self, dim: int, places: Int[Tensor, " n"]) -> Taken:
        """Rows, or columns and whole groups of them."""
        return lying(self, (self.latent.shape[0], self.latent.shape[1]), dim, places)

    def forward(self) -> Float[Tensor, "o i"]:
        """The matrix in its elements."""
        matrix = straight_through(self.latent, self._written(self.latent.detach()).dense())
        return matrix if self.keep is None else matrix * self.keep

    @torch.no_grad()
    def weight(self) -> Floats:
        """The matrix in its format."""
        return self._written(self.latent)


@torch.library.custom_op("lissom::floats_dense", mutates_args=())
def floats_dense(
    words: Tensor, mask: Tensor | None, scale: Tensor, overall: Tensor | None, kind: str, rows: int, columns: int
) -> Tensor:
    """element · scale, 0 where the mask is."""
    plane = Plane(words=words, mask=mask, shape=(rows, columns), bits=KINDS[kind].bits)
    elements = KINDS[kind].values(words.device)[plane.codes().int()]
    wide = read(scale, overall).unsqueeze(-1)
    matrix: Tensor = elements.unflatten(1, (scale.shape[1], -1)).mul_(wide).flatten(1)
    kept = plane.kept()
    return matrix if kept is None else torch.where(kept, matrix, 0.0)


@floats_dense.register_fake
def _(
    words: Tensor, mask: Tensor | None, scale: Tensor, overall: Tensor | None, kind: str, rows: int, columns: int
) -> Tensor:
    return scale.new_empty((rows, columns), dtype=torch.float32)


@torch.library.custom_op("lissom::floats_linear", mutates_args=())
def floats_linear(
    x: Tensor,
    words: Tensor,
    mask: Tensor | None,
    scale: Tensor,
    overall: Tensor | None,
    kind: str,
    rows: int,
    columns: int,
) -> Tensor:
    """x Wᵀ by way of the dense matrix."""
    return F.linear(x, floats_dense(words, mask, scale, overall, kind, rows, columns).to(x.dtype))


floats_linear.register_fake(by_way_of(floats_dense))
