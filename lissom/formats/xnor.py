"""Xnor: one bit per weight and one bit per input: the product of a layer is counting in which places the signs agree.

Rastegari et al., XNOR-Net, ECCV 2016, arXiv:1603.05279, section 3.2. Of each token (of each example, before a
convolution) only the side of its mean is kept, and two numbers:

    x̂ = μ + K s        s = sign(x - μ)        μ = mean(x)        K = mean|x - μ|

    x̂ Wᵀ = α ( K (n - 2 · popcount(s xor b)) + μ Σ_j b_j )        W = α b, n weights in a row

The paper has no μ: it puts a normalization before every layer. Without either nothing is left of what comes out of a
rectifier, whose signs are all the same. A convolution pads x̂ with zeros, as it pads x.

Shapes: o outputs, i inputs, n rows of input, f features of a token or example, w words.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor

from lissom.formats.binary import Binary, spread_out
from lissom.formats.plane import Plane, pack
from lissom.formats.weight import Parts, Spec, Trainable, Weight, straight_through

AT_ONCE = 2**22  # words that are compared at a time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Xnor(Weight):
    """A binary weight with one scale a row, whose layer's input is made binary too."""

    binary: Binary

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        return self.binary.shape

    def dense(self) -> Float[Tensor, "o i"]:
        """The matrix in float32."""
        return self.binary.dense()

    def activate(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """Each row on two values."""
        return two_valued(x)

    def linear(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ for an x of which every row has two values, as `activate` leaves it."""
        plane = self.binary.plane
        return torch.ops.lissom.xnor_linear(  # type: ignore[no-any-return]
            x, plane.words, plane.mask, self.binary.scale, *self.shape
        )

    def kept(self) -> Bool[Tensor, "o i"] | None:
        """Which weights were not pruned; None means all."""
        return self.binary.kept()

    def parts(self) -> dict[str, Tensor]:
        """Those of the binary weight."""
        return self.binary.parts()

    def spec(self) -> dict[str, Any]:
        """Its shape."""
        return {**self.binary.spec(), "format": "xnor"}

    @classmethod
    def of_parts(cls, spec: Spec, parts: Parts) -> "Xnor":
        """The inverse of `parts` and `spec`."""
        return cls(binary=Binary.of_parts(spec, parts))

    def trainable(self) -> Trainable:
        """The latent weights and scales of the binary weight."""
        return TrainableXnor(self)


class TrainableXnor(Trainable):
    """A trainable binary weight; gradients reach the input as if it were x held within μ ± K."""

    def __init__(self, weight: Xnor) -> None:
        super().__init__()
        self.binary: Trainable = weight.binary.trainable()

    def activate(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """Each row on two values."""
        return two_valued(x)

    @torch.no_grad()
    def near(self, original: Float[Tensor, "o i"]) -> None:
        """The binary weight as near as it gets."""
        self.binary.near(original)

    def forward(self) -> Float[Tensor, "o i"]:
        """The matrix of signs times scales."""
        matrix: Tensor = self.binary()
        return matrix

    def weight(self) -> Xnor:
        """The matrix in its format."""
        binary = self.binary.weight()
        assert isinstance(binary, Binary)
        return Xnor(binary=binary)


def two_valued(x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
    """μ + K sign(x - μ), straight through the clipped identity (Courbariaux et al., NeurIPS 2016, arXiv:1602.02830)."""
    mean = x.mean(1, keepdim=True)
    k = (x - mean).abs().mean(1, keepdim=True)
    held = mean + torch.minimum(torch.maximum(x - mean, -k), k)
    return straight_through(held, torch.where(x >= mean, mean + k, mean - k).detach())


def agreement(s: Int32[Tensor, "n w"], b: Int32[Tensor, "o w"], mask: Int32[Tensor, "o w"]) -> Float[Tensor, "n o"]:
    """Σ_j s_j b_j over the mask, for signs packed in words: as many as there are, less twice those that differ."""
    step = max(1, AT_ONCE // b.numel())
    differ = [popcount((rows.unsqueeze(1) ^ b) & mask) for rows in s.split(step)]
    return (popcount(mask) - 2 * torch.cat(differ)).float()


def popcount(words: Int32[Tensor, "*n w"]) -> Int32[Tensor, "*n"]:
    """The bits that are set in each row of words: summed in pairs, fours and bytes within the words, then the bytes."""
    words = words - ((words >> 1) & 0x55555555)
    words = (words & 0x33333333) + ((words >> 2) & 0x33333333)
    octets = ((words + (words >> 4)) & 0x0F0F0F0F).contiguous().view(torch.uint8)
    return octets.sum(-1, dtype=torch.int32)


@torch.library.custom_op("lissom::xnor_linear", mutates_args=())
def xnor_linear(x: Tensor, words: Tensor, mask: Tensor | None, scale: Tensor, rows: int, columns: int) -> Tensor:
    """x Wᵀ by counting, in integers up to the scales; the two values of a row are its least and its largest."""
    plane = Plane(words=words, mask=mask, shape=(rows, columns), bits=1)
    kept = plane.kept()
    b = words if kept is None else pack(plane.codes(), 1)
    whole = torch.ones(rows, columns, dtype=torch.uint8, device=words.device)
    there = pack(whole if kept is None else kept.to(torch.uint8), 1)
    flat = x.reshape(-1, columns).float()
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    middle, k = (high + low) / 2, (high - low) / 2
    signs = pack((flat > middle).to(torch.uint8), 1)
    total = 2 * popcount(b & there) - popcount(there)
    y = (k * agreement(signs, b, there) + middle * total) * spread_out(scale, 1).T
    return y.to(x.dtype).reshape(*x.shape[:-1], rows)


@xnor_linear.register_fake
def _(x: Tensor, words: Tensor, mask: Tensor | None, scale: Tensor, rows: int, columns: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))
