"""Sign: one bit per number, and the mean magnitude of its group.

Karimireddy, Rebjock, Stich, Jaggi, ICML 2019, arXiv:1901.09847, algorithm 1 (EF-signSGD), with the error feedback that
makes up for what signs alone leave out; in blocks as in Zheng, Huang, Kwok, NeurIPS 2019, arXiv:1905.10936:

    Δ = (‖p‖₁ / d) sign(p)

Shapes: as in `code.py`; d numbers of a group.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lissom.recover.parallel.codes.code import GROUPS, Code, grouped, joined, packed, parted, unpacked
from lissom.techniques.knobs import one_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign(Code):
    """`group` numbers share a magnitude of 16 bits."""

    group: int = 2048

    def __post_init__(self) -> None:
        one_of(GROUPS, group=self.group)

    @property
    def forgets(self) -> bool:
        return True

    @property
    def align(self) -> int:
        return self.group

    def encode(self, x: Float[Tensor, "m c"], draw: torch.Generator) -> UInt8[Tensor, "m b"]:
        scale = grouped(x, self.group).abs().mean(-1)
        return joined(scale, packed((x >= 0).to(torch.uint8), 1))

    def decode(self, octets: UInt8[Tensor, "m b"], c: int) -> Float[Tensor, "m c"]:
        scale, codes = parted(octets, c // self.group)
        signs = unpacked(codes, 1).float().mul_(2).sub_(1)
        return (grouped(signs, self.group) * scale.unsqueeze(-1)).flatten(1)
