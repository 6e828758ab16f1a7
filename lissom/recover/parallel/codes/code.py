"""What every code of gradients can do, and the octets that most are made of: scales, and small integers.

Shapes: m rows, which travel apart from each other, c numbers in a row, b octets, g groups of a row.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lissom.techniques.knobs import one_of

GROUPS = tuple(2**power for power in range(3, 17))  # of numbers that may share a scale


class Code(ABC):
    """A way to write rows of numbers as octets, and to read them again; each row by itself."""

    forgets: ClassVar[bool]  # whether what it loses must be added to the next gradient, or else is lost for good

    @property
    @abstractmethod
    def align(self) -> int:
        """What the length of rows must be a multiple of."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "m c"], draw: torch.Generator) -> UInt8[Tensor, "m b"]:
        """Write the rows; b hangs on c only. What is not finite is not read again as if it were."""

    @abstractmethod
    def decode(self, octets: UInt8[Tensor, "m b"], c: int) -> Float[Tensor, "m c"]:
        """Read c numbers of each row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped(Code):
    """A code in which `group` numbers share a scale of 16 bits."""

    group: int

    def __post_init__(self) -> None:
        one_of(GROUPS, group=self.group)

    @property
    def align(self) -> int:
        return self.group


def grouped(x: Float[Tensor, "m c"], group: int) -> Float[Tensor, "m g k"]:
    """The groups of each row."""
    groups: Tensor = x.unflatten(1, (-1, group))
    return groups


def rounded_up(scale: Float[Tensor, "m g"]) -> Float[Tensor, "m g"]:
    """The next number that bfloat16 has, for scales that are not negative: nothing exceeds a scale for being stored."""
    near = scale.bfloat16()
    above = (near.view(torch.int16) + 1).view(torch.bfloat16)
    return torch.where(near.float() < scale, above, near).float()


def over(x: Float[Tensor, "m g k"], scale: Float[Tensor, "m g"]) -> Float[Tensor, "m g k"]:
    """The numbers in units of their group's scale; 0 where that is 0."""
    return x / torch.where(scale == 0, 1.0, scale).unsqueeze(-1)


def joined(scale: Float[Tensor, "m g"], codes: UInt8[Tensor, "m b"]) -> UInt8[Tensor, "m d"]:
    """Octets of the scales, which bfloat16 holds exactly, and of the codes behind them."""
    return torch.cat([scale.bfloat16().view(torch.uint8), codes], 1)


def parted(octets: UInt8[Tensor, "m d"], groups: int) -> tuple[Float[Tensor, "m g"], UInt8[Tensor, "m b"]]:
    """The inverse of `joined`."""
    scales, codes = octets.split([2 * groups, octets.shape[1] - 2 * groups], 1)
    return scales.contiguous().view(torch.bfloat16).float(), codes


def packed(codes: UInt8[Tensor, "m c"], bits: int) -> UInt8[Tensor, "m b"]:
    """Codes of 1, 2, 4 or 8 bits, the first one lowest in its octet; c is a multiple of those in one."""
    per = 8 // bits
    parts = codes.unflatten(1, (-1, per))
    octets: Tensor = parts[..., 0].clone()
    for place in range(1, per):
        octets |= parts[..., place] << (bits * place)
    return octets


def unpacked(octets: UInt8[Tensor, "m b"], bits: int) -> UInt8[Tensor, "m c"]:
    """The inverse of `packed`."""
    places = torch.arange(0, 8, bits, dtype=torch.uint8, device=octets.device)
    codes: Tensor = (octets.unsqueeze(-1) >> places) & (2**bits - 1)
    return codes.flatten(1)
