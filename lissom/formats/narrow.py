"""Narrow: small floats whose layer's input becomes small floats too, row by row, as it comes.

Micikevicius et al., FP8 Formats for Deep Learning, 2022, arXiv:2209.05433; Kurtic et al., "Give Me BF16 or Give Me
Death"?, ACL 2025, arXiv:2411.02355, section 3 (W8A8-FP: a scale for each token, found when the model runs):

    q = nearest E4M3 of x / a        a = max_j |x_j| / 448        y_o = a s_o Σ_j q_j c_oj

Shapes: o outputs, i inputs, n rows of input, f features of a token or example.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lissom.formats.floats import KINDS, Floats, floats_dense
from lissom.formats.weight import Parts, Spec, Taken, Trainable, Weight, prefixed, straight_through

KIND = "fp8_e4m3"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Narrow(Weight):
    """A weight in E4M3 with a scale for each row, whose layer's inputs are to be in E4M3 as well."""

    floats: Floats

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        return self.floats.shape

    def dense(self) -> Float[Tensor, "o i"]:
        """The matrix in float32."""
        return self.floats.dense()

    def activate(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """Each row in small floats."""
        return narrowed(x)

    def linear(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ in small floats."""
        plane = self.floats.plane
        return torch.ops.lissom.narrow_linear(  # type: ignore[no-any-return]
            x, plane.words, plane.mask, self.floats.scale, *self.shape
        )

    def hear(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ; on a GPU the product rounds x by itself, and need not be given it rounded."""
        return self.linear(x) if x.is_cuda else Weight.hear(self, x)

    def look_up(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n i"]:
        """Some rows of the dense matrix."""
        return self.floats.look_up(index)

    def kept(self) -> Bool[Tensor, "o i"] | None:
        """Which weights were not pruned; None means all."""
        return self.floats.kept()

    def parts(self) -> dict[str, Tensor]:
        """Those of the small floats."""
        return self.floats.parts()

    def spec(self) -> dict[str, Any]:
        """That of the small floats."""
        return {**self.floats.spec(), "format": "narrow"}

    @classmethod
    def of_parts(cls, spec: Spec, parts: Parts) -> "Narrow":
        """The inverse of `parts` and `spec`."""
        return cls(floats=Floats.of_parts(spec, parts))

    def trainable(self) -> Trainable:
        """The latent weights of the small floats."""
        return TrainableNarrow(self)


class TrainableNarrow(Trainable):
    """Trainable small floats; gradients pass straight through the rounding of the input."""

    def __init__(self, weight: Narrow) -> None:
        super().__init__()
        self.floats: Trainable = weight.floats.trainable()

    def activate(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """Each row in small floats."""
        return straight_through(x, narrowed(x.detach()))

    def near(self, original: Float[Tensor, "o i"]) -> None:
        """The small floats as near as they get."""
        self.floats.near(original)

    def taken(self, dim: int, places: Int[Tensor, " n"]) -> Taken:
        """Of the small floats, along outputs; the scale of a row of inputs is that of all of them."""
        return super().taken(dim, places) if dim else prefixed("floats", self.floats.taken(dim, places))

    def forward(self) -> Float[Tensor, "o i"]:
        """The matrix in its elements."""
        matrix: Tensor = self.floats()
        return matrix

    def weight(self) -> Narrow:
        """The matrix in its format."""
        floats = self.floats.weight()
        assert isinstance(floats, Floats)
        return Narrow(floats=floats)


def narrowed(x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
    """a q, in the precision of x; a row of zeros has a = 1."""
    form = KINDS[KIND]
    largest = x.float().abs().amax(1, keepdim=True)
    a = torch.where(largest > 0, largest / form.largest, 1.0)
    q = (x.float() / a).clamp(-form.largest, form.largest).to(torch.float8_e4m3fn).float()
    return (q * a).to(x.dtype)


@torch.library.custom_op("lissom::narrow_linear", mutates_args=())
def narrow_linear(x: Tensor, words: Tensor, mask: Tensor | None, scale: Tensor, rows: int, columns: int) -> Tensor:
    """x Wᵀ by way of the dense matrix, for an x that is rounded here if it was not before."""
    x = narrowed(x.reshape(-1, columns)).reshape(x.shape)
    return F.linear(x, floats_dense(words, mask, scale, None, KIND, rows, columns).to(x.dtype))


@narrow_linear.register_fake
def _(x: Tensor, words: Tensor, mask: Tensor | None, scale: Tensor, rows: int, columns: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))
