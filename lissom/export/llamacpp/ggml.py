"""The block types of llama.cpp: which of them holds a weight, what comes nearest, and its bytes.

A row of a matrix is a sequence of blocks. A block of 32 weights (256 of TQ2_0) has a scale in float16 and the codes, in
two halves of a block so that one shift splits a byte (ggml-common.h):

    Q4_0  (q - 8) d     Q4_1  q d + m     Q5_0  (q - 16) d     Q5_1  q d + m     Q8_0  q d     TQ2_0  (q - 1) d

Scales are rounded to float16, as they are stored here too.

Shapes: o outputs, i inputs, b blocks of a row, k weights of a block, c bytes of a row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from lissom.export.even import filled
from lissom.export.grid import Grid, grid_of
from lissom.export.handover import Form
from lissom.formats import Dense, Weight
from lissom.statistics import Moments
from lissom.techniques.quantize.rtn import rtn

BLOCK, TRITS = 32, 256
Codes = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A block type: its weights, its bytes, and the codes that it holds, with `least` from a group's lowest on."""

    size: int
    nbytes: int
    low: int
    high: int
    least: bool
    write: Callable[[Codes], UInt8[np.ndarray, "o b c"]]
    scale_last: bool = False


def fours(codes: Codes) -> UInt8[np.ndarray, "o b c"]:
    """Codes 0 to 15 of a block, the second half above the first."""
    half = codes.shape[-1] // 2
    octets: np.ndarray = codes[..., :half] | codes[..., half:] << 4
    return octets


def fives(codes: Codes) -> UInt8[np.ndarray, "o b c"]:
    """Codes 0 to 31: their highest bits, then the others as `fours`."""
    return np.concatenate([np.packbits(codes >> 4, axis=-1, bitorder="little"), fours(codes & 15)], -1)


def eights(codes: Codes) -> UInt8[np.ndarray, "o b c"]:
    """Codes 0 to 255, which stand for -128 to 127."""
    return codes ^ 128


def trits(codes: Codes) -> UInt8[np.ndarray, "o b c"]:
    """Codes 0 to 2, four in a byte: of each 128 those that are 32 apart."""
    quarters = codes.reshape(*codes.shape[:-1], 2, 4, 32)
    octets = sum(quarters[..., place, :] << (2 * place) for place in range(4))
    return np.asarray(octets, dtype=np.uint8).reshape(*codes.shape[:-1], 64)


KINDS = {  # the smaller first
    "TQ2_0": Kind(size=TRITS, nbytes=66, low=-1, high=1, least=False, write=trits, scale_last=True),
    "Q4_0": Kind(size=BLOCK, nbytes=18, low=-8, high=7, least=False, write=fours),
    "Q4_1": Kind(size=BLOCK, nbytes=20, low=0, high=15, least=True, write=fours),
    "Q5_0": Kind(size=BLOCK, nbytes=22, low=-16, high=15, least=False, write=fives),
    "Q5_1": Kind(size=BLOCK, nbytes=24, low=0, high=31, least=True, write=fives),
    "Q8_0": Kind(size=BLOCK, nbytes=34, low=-128, high=127, least=False, write=eights),
}
FLOATS = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def holds(weight: Weight, layer: nn.Module) -> Form | None:
    """The smallest type that holds a weight as it is."""
    name = kind_of(weight)
    if isinstance(weight, Dense):
        return Form(name=str(name), bits=8 * weight.values.element_size())
    return None if name is None else Form(name=name, bits=8 * KINDS[name].nbytes / KINDS[name].size)


def kind_of(weight: Weight) -> str | None:
    """Its name."""
    if isinstance(weight, Dense):
        return FLOATS[weight.values.dtype]
    grid = grid_of(weight)
    return None if grid is None else next((name for name, kind in KINDS.items() if fits(grid, kind)), None)


def fills(weight: Weight, sizes: tuple[int, ...]) -> bool:
    """Whether a weight that is held is held too in a matrix of such sizes, whose rows may be no whole blocks."""
    grid = None if tuple(weight.shape) == sizes else grid_of(weight)
    return grid is None or any(fits(grid.filled(sizes), kind) for kind in KINDS.values())


def fits(grid: Grid, kind: Kind) -> bool:
    """Whether blocks of a type hold a grid."""
    scale = grid.scale_of(kind.size)
    if scale is None or bool((scale.abs() > torch.finfo(torch.float16).max).any()):
        return False
    return 2**grid.bits - 1 <= kind.high if kind.least else grid.within(kind.low, kind.high)


def nearest(weight: Weight, layer: nn.Module) -> Weight:
    """Eight bits in groups of 32, or where rows are not made of whole blocks float16."""
    dense, i = weight.dense(), weight.shape[1]
    if i % BLOCK:
        return Dense(values=dense.half())
    return rtn(Dense(values=dense), Moments.blank(i, dense.device), bits=8, group=BLOCK, clip=False)


def written(weight: Weight, sizes: tuple[int, ...], order: Int[Tensor, " o"] | None = None) -> tuple[str, np.ndarray]:
    """The type of a weight that can be held, and its rows, of bytes or of floats.

    Rows come in another `order` where one is given, and zeros fill the matrix up to its `sizes`.
    """
    if isinstance(weight, Dense):
        values = filled(weight.values if order is None else weight.values[order], sizes).contiguous()
        name = FLOATS[values.dtype]
        return name, values.view(torch.uint16).numpy().view(np.uint8) if name == "BF16" else values.numpy()
    grid = grid_of(weight)
    assert grid is not None
    grid = (grid if order is None else grid.rows(order)).filled(sizes)
    found = next((name for name, kind in KINDS.items() if fits(grid, kind)), None)
    if found is None:  # the widest block's rows are not made of whole blocks
        dense = weight.dense() if order is None else weight.dense()[order]
        return "F16", filled(dense.half(), sizes).contiguous().numpy()
    return found, blocks(grid, KINDS[found])


def blocks(grid: Grid, kind: Kind) -> UInt8[np.ndarray, "o c"]:
    """The rows of a grid in blocks of a type."""
    scale, zero = grid.scale_of(kind.size), grid.zero.repeat_interleave(grid.group // kind.size, 1)
    assert scale is not None
    o, b = scale.shape
    lowest = -zero if kind.least else torch.full_like(zero, kind.low)
    codes = (grid.codes.unflatten(1, (b, kind.size)) - lowest.unsqueeze(-1)).to(torch.uint8).numpy()
    parts = [half(scale), *([half(lowest * scale)] if kind.least else []), kind.write(codes)]
    return np.concatenate(parts[::-1] if kind.scale_last else parts, -1).reshape(o, -1)


def half(numbers: Tensor) -> UInt8[np.ndarray, "o b 2"]:
    """Numbers of blocks in float16, as bytes."""
    return numbers.half().unsqueeze(-1).numpy().view(np.uint8)
