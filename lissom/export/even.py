"""Widths made even, for runtimes that know one width for all blocks.

Where a block has fewer heads or neurons than another, zeros take their places: rows of what makes them, columns of what
reads them. Nothing that is computed changes; the bytes are those of the widest block.
"""

import re
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from lissom.errors import ModelError
from lissom.models.families import Family

Sizes = tuple[int, ...]


def widest(shapes: Mapping[str, Sizes], family: Family) -> dict[str, Sizes]:
    """The shape that each tensor takes: of all that do the same in their blocks, the largest.

    Raises:
        ModelError: layers that are fused of several differ, in which there is no place for more heads or neurons.
    """
    alike: dict[str, list[str]] = {}
    for name in shapes:
        alike.setdefault(re.sub(rf"^{re.escape(family.blocks)}\.\d+\.", "*.", name), []).append(name)
    found = dict[str, Sizes]()
    for names in alike.values():
        most = tuple(max(sizes) for sizes in zip(*(shapes[name] for name in names), strict=True))
        found |= dict.fromkeys(names, most)
    fused = [part for part in (*family.heads, *family.neurons) if len(family.heads) == 1]
    for name, most in found.items():
        if shapes[name] != most and any(f".{part}." in f"{name}." for part in fused):
            raise ModelError(f"{name} is narrower than in other blocks and fused of several layers: no room for zeros")
    return found


def filled(tensor: Tensor, sizes: Sizes) -> Tensor:
    """A tensor with zeros at the end of each dim."""
    more = [room for own, whole in zip(tensor.shape[::-1], sizes[::-1], strict=True) for room in (0, whole - own)]
    return F.pad(tensor, more) if any(more) else tensor
