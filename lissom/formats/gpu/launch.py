"""How kernels are cut into programs: the sizes of tiles, how many parts a sum has, and what is tried out on a GPU.

Shapes: n rows, o outputs.
"""

from collections.abc import Mapping
from typing import Any

import torch
import triton
from jaxtyping import Float
from torch import Tensor

TRIED = ((32, 2, 2), (32, 4, 5), (64, 4, 3), (64, 4, 5), (128, 8, 3))  # outputs of a tile, warps, stages of loading
OUTPUTS = 64  # of a tile, as a rule
DEEPEST = 128  # inputs of a tile
WIDEST = 64  # rows of a tile
BUSY = 256  # programs that keep a GPU busy: about two for each multiprocessor of a large one
MOST_PARTS = 16  # of a sum
FUSED = {"enable_fp_fusion": True}  # said, since Triton 3.9 warns of what it will take for it some day


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on a CPU (TRITON_INTERPRET=1)."""
    return bool(triton.knobs.runtime.interpret)


def tunings() -> list[triton.Config]:
    """What is tried the first time that a kernel meets a shape; one thing only where nothing can be timed."""
    tried = [triton.Config({"BLOCK_N": size}, num_warps=warps, num_stages=stages) for size, warps, stages in TRIED]
    return tried[:1] if interpreted() else tried


def tile_of(group: int, least: int) -> int:
    """Inputs of a tile: a power of two that covers the group, or leaves little of the last tile of it empty."""
    if group >= DEEPEST:
        return max(least, next((size for size in (DEEPEST, 64, 32) if group % size == 0), DEEPEST))
    return max(least, 1 << (group - 1).bit_length())


def parts_of(outputs: int, tiles: int, busy: int) -> int:
    """How many programs share the sums of a tile of outputs: a power of two, and no more than there are tiles."""
    parts, programs = 1, triton.cdiv(outputs, OUTPUTS)
    while 2 * parts <= min(tiles, MOST_PARTS) and parts * programs < busy:
        parts *= 2
    return parts


def in_parts(
    kernel: Any,
    before: tuple[Any, ...],
    behind: tuple[Any, ...],
    size: tuple[int, int],
    tiles: int,
    dtype: torch.dtype,
    busy: int,
    meta: Mapping[str, Any],
) -> Float[Tensor, "n o"]:
    """What a kernel makes of `size` rows and outputs, each sum over so many tiles in as many parts as keep a GPU busy.

    It is given what stands before the result and behind it, and `meta`, which it is compiled for.
    """
    (n, o), device = size, before[0].device
    block = min(WIDEST, max(16, triton.next_power_of_2(n)))
    parts = parts_of(o * triton.cdiv(n, block), tiles, busy)
    y = torch.empty(parts, n, o, dtype=dtype if parts == 1 else torch.float32, device=device)

    def grid(tuned: Mapping[str, Any]) -> tuple[int, int, int]:
        return triton.cdiv(o, tuned["BLOCK_N"]), triton.cdiv(n, block), parts

    if n:
        kernel[grid](*before, y, n, block, *behind, BLOCK_M=block, PARTS=parts, **meta, **FUSED)
    return y[0] if parts == 1 else y.sum(0).to(dtype)
