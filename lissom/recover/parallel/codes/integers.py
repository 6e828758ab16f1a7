"""Integers: the nearest of 2^b - 1 levels, with one scale for each group of numbers.

The grid of weights, for gradients, with error feedback (Seide et al., Interspeech 2014, section 2; Karimireddy et al.,
ICML 2019, arXiv:1901.09847):

    s = max |x| / (2^(b-1) - 1)        q = round(x / s)

Shapes: as in `code.py`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lissom.recover.parallel.codes.code import Grouped, grouped, joined, over, packed, parted, rounded_up, unpacked
from lissom.techniques.knobs import one_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Integers(Grouped):
    """`bits` 2, 4 or 8; `group` numbers share a scale of 16 bits."""

    forgets: ClassVar[bool] = True
    bits: int = 4
    group: int = 256

    def __post_init__(self) -> None:
        one_of((2, 4, 8), bits=self.bits)
        Grouped.__post_init__(self)  # super() does not know a class with slots

    @property
    def top(self) -> int:
        """The largest level."""
        return int(2 ** (self.bits - 1)) - 1

    def encode(self, x: Float[Tensor, "m c"], draw: torch.Generator) -> UInt8[Tensor, "m b"]:
        groups = grouped(x, self.group)
        scale = rounded_up(groups.abs().amax(-1) / self.top)
        levels = over(groups, scale).round_().add_(self.top)
        return joined(scale, packed(levels.to(torch.uint8).flatten(1), self.bits))

    def decode(self, octets: UInt8[Tensor, "m b"], c: int) -> Float[Tensor, "m c"]:
        scale, codes = parted(octets, c // self.group)
        levels = unpacked(codes, self.bits).float().sub_(self.top)
        return (grouped(levels, self.group) * scale.unsqueeze(-1)).flatten(1)
