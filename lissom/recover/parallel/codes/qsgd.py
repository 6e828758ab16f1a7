"""QSGD: one of the two levels beside a number, drawn so that the mean is the number itself.

Alistarh, Grubic, Li, Tomioka, Vojnovic, NeurIPS 2017, arXiv:1610.02132, section 3.1:

    Q(x) = ‖x‖ sign(x) ξ        ξ = (l + 1) / s with chance s |x| / ‖x‖ - l, else l / s        l = ⌊s |x| / ‖x‖⌋

in buckets of 512 and with the largest magnitude for the norm, as in their experiments (section 5); theirs for the
theorem is `norm="l2"`. The levels are written in a fixed number of bits, not in Elias's code.

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
class Qsgd(Grouped):
    """`bits` 2, 4 or 8 with the sign, so 1, 7 or 127 levels; `group` numbers share a norm of 16 bits."""

    forgets: ClassVar[bool] = False
    bits: int = 4
    group: int = 512
    norm: str = "max"

    def __post_init__(self) -> None:
        one_of((2, 4, 8), bits=self.bits)
        Grouped.__post_init__(self)  # super() does not know a class with slots
        one_of(("max", "l2"), norm=self.norm)

    @property
    def levels(self) -> int:
        """s."""
        return int(2 ** (self.bits - 1)) - 1

    def encode(self, x: Float[Tensor, "m c"], draw: torch.Generator) -> UInt8[Tensor, "m b"]:
        groups = grouped(x, self.group)
        scale = rounded_up(groups.abs().amax(-1) if self.norm == "max" else groups.norm(dim=-1))
        wanted = over(groups, scale) * self.levels
        drawn = (wanted + torch.rand(groups.shape, generator=draw, device=x.device)).floor_()
        drawn = drawn.clamp_(-self.levels, self.levels).add_(self.levels)
        return joined(scale, packed(drawn.to(torch.uint8).flatten(1), self.bits))

    def decode(self, octets: UInt8[Tensor, "m b"], c: int) -> Float[Tensor, "m c"]:
        scale, codes = parted(octets, c // self.group)
        levels = unpacked(codes, self.bits).float().sub_(self.levels)
        return (grouped(levels, self.group) * (scale / self.levels).unsqueeze(-1)).flatten(1)
