"""TopK: the numbers of largest magnitude, and where they were.

Stich, Cordonnier, Jaggi, NeurIPS 2018, arXiv:1809.07599, definition 2.1 and algorithm 1 (Mem-SGD), where what was left
out waits for the next gradient; the share of a thousandth to a hundredth as in Lin et al., Deep Gradient Compression,
ICLR 2018, arXiv:1712.01887. Each is written in 16 bits, and its place in a block of at most 2¹⁶ in 16 more.

Shapes: as in `code.py`; t blocks of w numbers, k of which are kept.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import pad

from lissom.recover.parallel.codes.code import Code
from lissom.techniques.knobs import between

BLOCK = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK(Code):
    """`fraction` is the share that is kept, at least one number of each block."""

    forgets: ClassVar[bool] = True
    fraction: float = 0.01

    def __post_init__(self) -> None:
        between(0, 1, fraction=self.fraction)

    @property
    def align(self) -> int:
        return 1

    def blocks(self, c: int) -> tuple[int, int, int]:
        """t, w and k of a row."""
        t = -(-c // BLOCK)
        w = -(-c // t)
        return t, w, min(w, max(1, round(w * self.fraction)))

    def encode(self, x: Float[Tensor, "m c"], draw: torch.Generator) -> UInt8[Tensor, "m b"]:
        t, w, k = self.blocks(x.shape[1])
        blocks = pad(x, (0, t * w - x.shape[1])).unflatten(1, (t, w))
        places = blocks.abs().topk(k, dim=-1, sorted=False).indices
        values = blocks.gather(-1, places).bfloat16().view(torch.uint8)
        return torch.cat([values.flatten(1), places.to(torch.uint16).view(torch.uint8).flatten(1)], 1)

    def decode(self, octets: UInt8[Tensor, "m b"], c: int) -> Float[Tensor, "m c"]:
        t, w, _ = self.blocks(c)
        values, places = (part.contiguous().unflatten(1, (t, -1)) for part in octets.chunk(2, 1))
        found = torch.zeros(len(octets), t, w, device=octets.device)
        found.scatter_(-1, places.view(torch.uint16).long(), values.view(torch.bfloat16).float())
        return found.flatten(1)[:, :c].contiguous()
