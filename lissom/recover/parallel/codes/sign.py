"""Sign: one bit per number, and the mean magnitude of its group.

Karimireddy, Rebjock, Stich, Jaggi, ICML 2019, arXiv:1901.09847, algorithm 1 (EF-signSGD), with the error feedback that
makes up for what signs alone leave out; in blocks as in Zheng, Huang, Kwok, NeurIPS 2019, arXiv:1905.10936:

    Δ = (‖p‖₁ / d) sign(p)

Shapes: as in `code.py`; d numbers of a group.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lissom.recover.parallel.codes.code import Grouped, grouped, joined, packed, parted, unpacked


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign(Grouped):
    """`group` numbers share a magnitude of 16 bits."""

    forgets: ClassVar[bool] = True
    group: int = 2048

    def encode(self, x: Float[Tensor, "m c"], draw: torch.Generator) -> UInt8[Tensor, "m b"]:
        scale = grouped(x, self.group).abs().mean(-1)
        return joined(scale, packed((x >= 0).to(torch.uint8), 1))

    def decode(self, octets: UInt8[Tensor, "m b"], c: int) -> Float[Tensor, "m c"]:
        scale, codes = parted(octets, c // self.group)
        signs = unpacked(codes, 1).float().mul_(2).sub_(1)
        return (grouped(signs, self.group) * scale.unsqueeze(-1)).flatten(1)
