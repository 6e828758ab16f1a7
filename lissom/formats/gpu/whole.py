"""Rows of whole numbers times a matrix of whole numbers, summed in 32 bits: what `Dynamic` says, on integer units.

    y_no = a_n Σ_g s_og ( Σ_{j in g} q_nj (c_oj - h)  +  (h - z_og) Σ_{j in g} q_nj )        h = 2^(b-1)

so that what is multiplied is a signed byte whatever the zero is. Rows become whole numbers in a kernel before.

Shapes: n rows, o outputs, i inputs, g groups of a row.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int8
from torch import Tensor

from lissom.formats.gpu.coded import Coded, group_of
from lissom.formats.gpu.launch import BUSY, FUSED, in_parts, tile_of, tunings
from lissom.formats.gpu.reading import single_codes, tile_codes

LOT = 1024  # inputs that a program rounds at a time


@triton.jit
@no_type_check
def largest_of(x, row, inputs, LOT: tl.constexpr):
    """The largest magnitude of a row of inputs."""
    most = tl.zeros((LOT,), tl.float32)
    for first in range(0, inputs, LOT):
        place = first + tl.arange(0, LOT)
        most = tl.maximum(
            most, tl.abs(tl.load(x + row * inputs + place, mask=place < inputs, other=0.0).to(tl.float32))
        )
    return tl.max(most, axis=0)


@triton.jit
@no_type_check
def nearest(x):
    """The nearest whole number, of two the even one: floats of this size have no bits behind the point."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
@no_type_check
def round_rows(x, q, a, inputs, levels, LOT: tl.constexpr):
    """One row on its grid: whole numbers, and their unit."""
    row = tl.program_id(0).to(tl.int64)
    most = largest_of(x, row, inputs, LOT)
    unit = tl.where(most > 0, tl.math.div_rn(most, levels * 1.0), 1.0)
    tl.store(a + row, unit)
    for first in range(0, inputs, LOT):
        place = first + tl.arange(0, LOT)
        heard = tl.load(x + row * inputs + place, mask=place < inputs, other=0.0).to(tl.float32)
        whole = nearest(tl.math.div_rn(heard, unit + tl.zeros_like(heard)))
        tl.store(q + row * inputs + place, whole.to(tl.int8), mask=place < inputs)


@triton.autotune(configs=tunings(), key=["near", "o", "inputs", "group"])
@triton.jit
@no_type_check
def multiply_whole(
    q, a, y, n, near, words, wide, scale, zeros, zeros_wide, o, inputs, group, groups,
    BITS: tl.constexpr, ZEROS: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One part of the sums of a tile of y, as [outputs, rows]."""
    out = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    example = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(2)
    row = tl.minimum(out, o - 1).to(tl.int64)
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for number in range(part, groups * tl.cdiv(group, BLOCK_K), PARTS):
        own, first, end = group_of(number, group, BLOCK_K)
        codes = tile_codes(words, row, first, end, wide, BITS, BLOCK_K, WHOLE)
        place = first + tl.arange(0, BLOCK_K)
        there = (place < end)[:, None] & (example < n)[None, :]
        heard = tl.load(q + example[None, :].to(tl.int64) * inputs + place[:, None], mask=there, other=0)
        whole = tl.dot((codes - (1 << (BITS - 1))).to(tl.int8), heard, out_dtype=tl.int32)
        if ZEROS:
            zero = single_codes(zeros, row, own + tl.zeros_like(row), row >= 0, zeros_wide, BITS)
            whole += ((1 << (BITS - 1)) - zero)[:, None] * tl.sum(heard.to(tl.int32), axis=0)[None, :]
        total += whole.to(tl.float32) * tl.load(scale + row * groups + own).to(tl.float32)[:, None]
    total *= tl.load(a + example, mask=example < n, other=0.0)[None, :]
    at = (part * n + example[None, :]).to(tl.int64) * o + out[:, None]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=(out < o)[:, None] & (example < n)[None, :])


def whole_rows(x: Float[Tensor, "n i"], levels: int) -> tuple[Int8[Tensor, "n i"], Float[Tensor, " n"]]:
    """q and a (dynamic.py)."""
    n, i = x.shape
    q, a = torch.empty_like(x, dtype=torch.int8), torch.empty(n, dtype=torch.float32, device=x.device)
    if n:
        round_rows[n,](x, q, a, i, levels, LOT=LOT, **FUSED)
    return q, a


def whole_product(x: Float[Tensor, "*n i"], w: Coded, levels: int, *, busy: int = BUSY) -> Float[Tensor, "*n o"]:
    """x Wᵀ for a matrix of integers, of rows that become whole numbers up to `levels`."""
    q, a = whole_rows(x.reshape(-1, w.inputs).contiguous(), levels)
    o, group = w.words.shape[0], w.inputs // w.groups
    words, wide, scale, zeros, zeros_wide = w.given()[:5]
    behind = (words, wide, scale, zeros, zeros_wide, o, w.inputs, group, w.groups)
    meta = {name: value for name, value in w.meta().items() if name in ("BITS", "ZEROS", "WHOLE")}
    meta["BLOCK_K"] = tile_of(group, 32)  # the least that integer units take
    tiles = w.groups * triton.cdiv(group, meta["BLOCK_K"])
    y = in_parts(multiply_whole, (q, a), behind, (len(q), o), tiles, x.dtype, busy, meta)
    return y.reshape(*x.shape[:-1], o)
