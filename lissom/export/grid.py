"""A weight as whole numbers and scales, where it is that: what other runtimes' integer formats are made of.

Shapes: o outputs, i inputs, g groups of a row.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Int16
from torch import Tensor

from lissom.export.even import filled
from lissom.formats import Affine, Binary, Dynamic, Ternary, Weight


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """w = code · scale of its group, in which code 0 stands for 0, also where a weight was pruned.

    Of `bits` bits there are 2^bits codes; the lowest of a group is -`zero`, half of them where the grid is symmetric.
    """

    codes: Int16[Tensor, "o i"]
    scale: Float[Tensor, "o g"]
    zero: Int16[Tensor, "o g"]
    bits: int

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.codes.shape[1] // self.scale.shape[1]

    @property
    def symmetric(self) -> bool:
        """Whether every group has as many codes below zero as any."""
        return bool((self.zero == 2 ** (self.bits - 1)).all())

    def within(self, low: int, high: int) -> bool:
        """Whether all codes are from `low` to `high`."""
        return low <= int(self.codes.min()) and int(self.codes.max()) <= high

    def scale_of(self, size: int) -> Float[Tensor, "o n"] | None:
        """The scale of every `size` inputs that follow one another, or None where they do not share one."""
        if self.codes.shape[1] % size or self.group % size:
            return None
        return self.scale.repeat_interleave(self.group // size, 1)

    def filled(self, sizes: tuple[int, ...]) -> "Grid":
        """The same with room for more outputs and inputs, of weights that are 0."""
        o, i = sizes
        whole = self.scale.shape[1] == 1  # a scale for each row is one for a longer row
        group = i if whole else math.gcd(self.group, i)
        times = 1 if whole else self.group // group
        scale, zero = (part.repeat_interleave(times, 1) for part in (self.scale, self.zero))
        room = (o, i // group)
        return replace(self, codes=filled(self.codes, sizes), scale=filled(scale, room), zero=filled(zero, room))

    def rows(self, order: Int[Tensor, " n"]) -> "Grid":
        """The grid of some rows, in an order."""
        return replace(self, codes=self.codes[order], scale=self.scale[order], zero=self.zero[order])


def grid_of(weight: Weight) -> Grid | None:
    """The grid of a weight; None where it has none."""
    if isinstance(weight, Dynamic):
        return grid_of(weight.affine)
    if isinstance(weight, (Binary, Ternary)):
        scale = weight.scale.float()
        codes = weight.dense().sign().to(torch.int16)
        return Grid(codes=codes, scale=scale, zero=torch.full_like(scale, 2).to(torch.int16), bits=2)
    if not isinstance(weight, Affine):
        return None
    zero, kept = weight.zeros().to(torch.int16), weight.kept()
    codes = weight.plane.codes().to(torch.int16) - zero.repeat_interleave(weight.group, 1)
    codes = codes if kept is None else codes * kept
    return Grid(codes=codes, scale=weight.scale.float(), zero=zero, bits=weight.bits)
