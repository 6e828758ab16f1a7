"""Rows of small floats times a matrix of small floats: what `Narrow` says, on units for numbers of 8 bits.

    y_no = a_n s_o Σ_j q_nj c_oj        q and c in E4M3

Rows become small floats in a kernel before. Only GPUs from Ada and Hopper on (capability 8.9) have such units.

Shapes: n rows, o outputs, i inputs.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32, Shaped
from torch import Tensor

from lissom.formats.gpu.launch import BUSY, DEEPEST, FUSED, in_parts, tunings
from lissom.formats.gpu.whole import LOT, largest_of, nearest

LARGEST = tl.constexpr(448.0)  # of E4M3
LEAST_BITS = tl.constexpr((127 - 6) << 23)  # of 2⁻⁶ in float32, from which on E4M3 has exponents
BIAS = tl.constexpr((127 - 7) << 3)  # how far apart the two types count exponents


@triton.jit
@no_type_check
def small_code(x):
    """The bits of the nearest E4M3 number, of two the even one, for an x that is no larger than the largest."""
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    even = (size + 0x7FFFF + ((size >> 20) & 1)) >> 20  # 3 of 23 bits behind the point are left
    whole = nearest(tl.abs(x) * 512.0).to(tl.int32)  # below the least exponent numbers are whole multiples of 2⁻⁹
    code = tl.where(size < LEAST_BITS, whole, even - BIAS)
    return code | ((bits >> 24) & 0x80)


@triton.jit
@no_type_check
def narrow_rows(x, q, a, inputs, LOT: tl.constexpr):
    """One row as small floats, and their unit."""
    row = tl.program_id(0).to(tl.int64)
    most = largest_of(x, row, inputs, LOT)
    unit = tl.where(most > 0, tl.math.div_rn(most, LARGEST), 1.0)
    tl.store(a + row, unit)
    for first in range(0, inputs, LOT):
        place = first + tl.arange(0, LOT)
        heard = tl.load(x + row * inputs + place, mask=place < inputs, other=0.0).to(tl.float32)
        small = small_code(tl.math.div_rn(heard, unit + tl.zeros_like(heard)))
        tl.store(q + row * inputs + place, small.to(tl.uint8), mask=place < inputs)


@triton.autotune(configs=tunings(), key=["near", "o", "inputs"])
@triton.jit
@no_type_check
def multiply_narrow(
    q, a, y, n, near, codes, wide, scale, o, inputs,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One part of the sums of a tile of y, as [outputs, rows]."""
    out = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    example = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(2)
    row = tl.minimum(out, o - 1).to(tl.int64)
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for number in range(part, tl.cdiv(inputs, BLOCK_K), PARTS):
        place = number * BLOCK_K + tl.arange(0, BLOCK_K)
        w = tl.load(codes + row[:, None] * wide + place[None, :], mask=(place < inputs)[None, :], other=0.0)
        there = (place < inputs)[:, None] & (example < n)[None, :]
        heard = tl.load(q + example[None, :].to(tl.int64) * inputs + place[:, None], mask=there, other=0.0)
        total = tl.dot(w, heard, total)
    total *= tl.load(scale + row).to(tl.float32)[:, None]
    total *= tl.load(a + example, mask=example < n, other=0.0)[None, :]
    at = (part * n + example[None, :]).to(tl.int64) * o + out[:, None]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=(out < o)[:, None] & (example < n)[None, :])


def small_rows(x: Float[Tensor, "n i"]) -> tuple[Shaped[Tensor, "n i"], Float[Tensor, " n"]]:
    """q and a (formats/narrow.py)."""
    n, i = x.shape
    q, a = torch.empty_like(x, dtype=torch.float8_e4m3fn), torch.empty(n, dtype=torch.float32, device=x.device)
    if n:
        narrow_rows[n,](x, q.view(torch.uint8), a, i, LOT=LOT, **FUSED)
    return q, a


def narrow_product(
    x: Float[Tensor, "*n i"], words: Int32[Tensor, "o w"], scale: Float[Tensor, "o 1"], *, busy: int = BUSY
) -> Float[Tensor, "*n o"]:
    """x Wᵀ for codes in words, of rows that become small floats."""
    i, o, codes = x.shape[-1], len(words), words.view(torch.float8_e4m3fn)
    q, a = small_rows(x.reshape(-1, i).contiguous())
    behind = (codes, codes.shape[1], scale, o, i)
    tiles, meta = triton.cdiv(i, DEEPEST), {"BLOCK_K": DEEPEST}
    y = in_parts(multiply_narrow, (q, a), behind, (len(q), o), tiles, x.dtype, busy, meta)
    return y.reshape(*x.shape[:-1], o)
