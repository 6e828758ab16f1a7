"""Rows of floats times a matrix of codes: integers in groups, codebooks, small floats.

    y_no = Σ_g s_og Σ_{j in g} x_nj v(c_oj)        v(c) = c - z_og,  book_o[c],  or the small float whose bits c is

A tile never crosses a group, so that a group's scale multiplies a sum and not each weight. Few rows are multiplied as
the codes are read; for many it is faster to write the matrix down once, in the type of the rows, and let PyTorch
multiply. Where there are few tiles of outputs, several programs share the inputs of each, and their sums are added.

Shapes: n rows, o outputs, i inputs, g groups of a row, w words of a row, p codebooks, e entries of each.
"""

from dataclasses import dataclass
from typing import Any, no_type_check

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from lissom.formats.gpu.launch import BUSY, FUSED, WIDEST, in_parts, tile_of, tunings
from lissom.formats.gpu.reading import INTEGER, numbers, product_of, single_codes, tile_codes

FEW = {torch.float32: 16}  # rows multiplied as codes are read: no unit takes floats, and more of them would be spilled


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A matrix of codes as the kernels read it: without `zeros` the middle code stands for 0, without `scale` it is 1.

    `kind` says what a code stands for (reading.py); `rows` rows of the matrix share a codebook.
    """

    words: Int32[Tensor, "o w"]
    bits: int
    inputs: int
    scale: Float[Tensor, "o g"] | None
    zeros: Int32[Tensor, "o z"] | None = None
    kind: int = INTEGER.value
    book: Float[Tensor, "p e"] | None = None
    rows: int = 1

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return 1 if self.scale is None else self.scale.shape[1]

    def given(self) -> tuple[Any, ...]:
        """What the kernels are given of it."""
        o, w = self.words.shape
        none = self.words  # a place that is never read
        zeros = (none, 0) if self.zeros is None else (self.zeros, self.zeros.shape[1])
        book = (none, 0) if self.book is None else (self.book, self.book.shape[1])
        scale = none if self.scale is None else self.scale
        return self.words, w, scale, *zeros, *book, self.rows, o, self.inputs, self.inputs // self.groups, self.groups

    def meta(self) -> dict[str, Any]:
        """What they are compiled for."""
        group, each = self.inputs // self.groups, 32 // self.bits
        block = tile_of(group, 32 if self.bits == 1 else 16)
        whole = 32 % self.bits == 0 and group % each == 0
        told = {"BITS": self.bits, "KIND": self.kind, "BLOCK_K": block, "WHOLE": whole}
        return told | {"ZEROS": self.zeros is not None, "SCALED": self.scale is not None}


@triton.jit
@no_type_check
def group_of(tile, group, BLOCK_K: tl.constexpr):
    """The group that a tile lies in, and its first input and the end of the group."""
    each = tl.cdiv(group, BLOCK_K)
    own = tile // each
    return own, own * group + (tile % each) * BLOCK_K, (own + 1) * group


@triton.jit
@no_type_check
def tile(
    words, wide, scale, zeros, zeros_wide, book, entries, rows, groups, row, own, first, end,
    BITS: tl.constexpr, KIND: tl.constexpr, ZEROS: tl.constexpr, SCALED: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The numbers of a tile of some rows, and the scale of each row."""
    codes = tile_codes(words, row, first, end, wide, BITS, BLOCK_K, WHOLE)
    zero = tl.zeros_like(row).to(tl.int32) + (1 << (BITS - 1))
    if ZEROS:
        zero = single_codes(zeros, row, own + tl.zeros_like(row), row >= 0, zeros_wide, BITS)
    factor = tl.zeros_like(row).to(tl.float32) + 1.0
    if SCALED:
        factor = tl.load(scale + row * groups + own).to(tl.float32)
    return numbers(codes, zero, book + (row // rows) * entries, KIND), factor


@triton.autotune(configs=tunings(), key=["near", "o", "inputs", "group"])
@triton.jit
@no_type_check
def multiply(
    x, y, n, near, words, wide, scale, zeros, zeros_wide, book, entries, rows, o, inputs, group, groups,
    BITS: tl.constexpr, KIND: tl.constexpr, ZEROS: tl.constexpr, SCALED: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One part of the sums of a tile of y, as [outputs, rows]: what is multiplied first may stay in registers."""
    out = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    example = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(2)
    row = tl.minimum(out, o - 1).to(tl.int64)
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for number in range(part, groups * tl.cdiv(group, BLOCK_K), PARTS):
        own, first, end = group_of(number, group, BLOCK_K)
        w, factor = tile(
            words, wide, scale, zeros, zeros_wide, book, entries, rows, groups, row, own, first, end,
            BITS, KIND, ZEROS, SCALED, WHOLE, BLOCK_K,
        )  # fmt: skip
        place = first + tl.arange(0, BLOCK_K)
        there = (place < end)[:, None] & (example < n)[None, :]
        heard = tl.load(x + example[None, :].to(tl.int64) * inputs + place[:, None], mask=there, other=0.0)
        total += product_of(w.to(heard.dtype), heard) * factor[:, None]
    at = (part * n + example[None, :]).to(tl.int64) * o + out[:, None]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=(out < o)[:, None] & (example < n)[None, :])


@triton.jit
@no_type_check
def write(
    y, words, wide, scale, zeros, zeros_wide, book, entries, rows, o, inputs, group, groups,
    BITS: tl.constexpr, KIND: tl.constexpr, ZEROS: tl.constexpr, SCALED: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One tile of the matrix, written down."""
    out = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(out, o - 1).to(tl.int64)
    own, first, end = group_of(tl.program_id(1), group, BLOCK_K)
    w, factor = tile(
        words, wide, scale, zeros, zeros_wide, book, entries, rows, groups, row, own, first, end,
        BITS, KIND, ZEROS, SCALED, WHOLE, BLOCK_K,
    )  # fmt: skip
    place = first + tl.arange(0, BLOCK_K)
    there = (out < o)[:, None] & (place < end)[None, :]
    tl.store(y + row[:, None] * inputs + place[None, :], (w * factor[:, None]).to(y.dtype.element_ty), mask=there)


def written(w: Coded, dtype: torch.dtype) -> Float[Tensor, "o i"]:
    """The matrix itself."""
    o, meta = w.words.shape[0], w.meta()
    y = torch.empty(o, w.inputs, dtype=dtype, device=w.words.device)
    tiles = w.groups * triton.cdiv(w.inputs // w.groups, meta["BLOCK_K"])
    write[triton.cdiv(o, 32), tiles](y, *w.given(), BLOCK_N=32, **meta, **FUSED)
    return y


def product(x: Float[Tensor, "*n i"], w: Coded, *, busy: int = BUSY) -> Float[Tensor, "*n o"]:
    """x Wᵀ; many rows by way of the matrix, few by as many programs as keep a GPU `busy`."""
    rows = x.reshape(-1, w.inputs).contiguous()
    o, meta = w.words.shape[0], w.meta()
    if len(rows) > FEW.get(x.dtype, WIDEST):
        return F.linear(x, written(w, x.dtype))
    tiles = w.groups * triton.cdiv(w.inputs // w.groups, meta["BLOCK_K"])
    y = in_parts(multiply, (rows,), w.given(), (len(rows), o), tiles, x.dtype, busy, meta)
    return y.reshape(*x.shape[:-1], o)
