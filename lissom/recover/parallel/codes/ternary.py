"""TernGrad: -s, 0 or +s, drawn so that the mean is the number itself.

Wen et al., NeurIPS 2017, arXiv:1705.07878, eq. (2)-(3) for the draw, eq. (8) for the clipping that keeps s small:

    x ← clip(x, ±2.5 σ)        s = max |x|        x̃ = s sign(x) Bernoulli(|x| / s)

There s and σ are those of a layer, here those of a group of numbers, which vary less. Five trits lie in an octet.

Shapes: as in `code.py`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lissom.formats import ternary
from lissom.recover.parallel.codes.code import Grouped, grouped, joined, over, parted, rounded_up
from lissom.techniques.knobs import above


@dataclass(frozen=True, slots=True, kw_only=True)
class TernGrad(Grouped):
    """`group` numbers share a scale of 16 bits; `clip` is in standard deviations."""

    forgets: ClassVar[bool] = False
    group: int = 512
    clip: float = 2.5

    def __post_init__(self) -> None:
        Grouped.__post_init__(self)  # super() does not know a class with slots
        above(0, clip=self.clip)

    def encode(self, x: Float[Tensor, "m c"], draw: torch.Generator) -> UInt8[Tensor, "m b"]:
        groups = grouped(x, self.group)
        most = self.clip * groups.std(-1, correction=0, keepdim=True)
        groups = torch.maximum(torch.minimum(groups, most), -most)
        scale = rounded_up(groups.abs().amax(-1))
        there = torch.rand(groups.shape, generator=draw, device=x.device) < over(groups, scale).abs()
        trits = there * groups.sign() + 1
        return joined(scale, ternary.pack(trits.to(torch.uint8).flatten(1)))

    def decode(self, octets: UInt8[Tensor, "m b"], c: int) -> Float[Tensor, "m c"]:
        scale, codes = parted(octets, c // self.group)
        trits = ternary.unpack(codes, c).float().sub_(1)
        return (grouped(trits, self.group) * scale.unsqueeze(-1)).flatten(1)
