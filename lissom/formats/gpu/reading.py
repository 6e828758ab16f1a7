"""How kernels read a matrix: codes from the words in which they are packed, and the numbers that codes stand for.

A row of codes is one stream of bits in words of 32 (plane.py). Where a word holds whole codes and a group of inputs
begins with a word, a word is read once for all its codes; else each code is put together from the one or two words that
it lies in.

Shapes: n outputs of a tile, k inputs of a tile.
"""

from typing import no_type_check

import triton
import triton.language as tl

from lissom.formats.gpu.launch import interpreted

INTEGER, BOOK, E4M3, E5M2 = (tl.constexpr(kind) for kind in range(4))  # what a code stands for
INTERPRETED = tl.constexpr(interpreted())


@triton.jit
@no_type_check
def single_codes(words, row, place, there, wide, BITS: tl.constexpr):
    """The codes at some places of some rows; `wide` is how many words a row has."""
    bit = place * BITS
    word = bit >> 5
    at = words + row * wide + word
    code = tl.load(at, mask=there, other=0).to(tl.uint32, bitcast=True) >> (bit & 31).to(tl.uint32)
    if 32 % BITS != 0:
        high = tl.load(at + 1, mask=there & (word + 1 < wide), other=0).to(tl.uint32, bitcast=True)
        code |= (high << 1) << (31 - (bit & 31)).to(tl.uint32)  # in two steps: by 32 at once is not defined
    return (code & ((1 << BITS) - 1)).to(tl.int32)


@triton.jit
@no_type_check
def tile_codes(words, row, first, end, wide, BITS: tl.constexpr, BLOCK_K: tl.constexpr, WHOLE: tl.constexpr):
    """The codes of a tile [n, k], from the input `first` on; what lies behind `end` is anything at all."""
    if WHOLE:
        EACH: tl.constexpr = 32 // BITS
        word = first // EACH + tl.arange(0, BLOCK_K // EACH)
        there = (word * EACH < end)[None, :]
        packed = tl.load(words + row[:, None] * wide + word[None, :], mask=there, other=0)
        shift = tl.arange(0, EACH) * BITS
        fields = (packed[:, :, None] >> shift[None, None, :]) & ((1 << BITS) - 1)
        codes = tl.reshape(fields, (row.shape[0], BLOCK_K))
    else:
        place = first + tl.arange(0, BLOCK_K)
        codes = single_codes(words, row[:, None], place[None, :], (place < end)[None, :], wide, BITS)
    return codes


@triton.jit
@no_type_check
def numbers(codes, zero, book, KIND: tl.constexpr):
    """What codes stand for, in float32, before the scale of their group; `book` is where a row's codebook begins."""
    if KIND == INTEGER:
        number = (codes - zero[:, None]).to(tl.float32)
    elif KIND == BOOK:
        number = tl.load(book[:, None] + codes).to(tl.float32)
    elif KIND == E4M3:  # its bits are those of a half float, whose exponents begin elsewhere
        half = ((codes & 0x80) << 8) | ((codes & 0x7F) << 7)
        number = half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    else:
        number = (codes << 8).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return number


@triton.jit
@no_type_check
def product_of(w, x):
    """A product of tiles, summed in float32. Triton's interpreter would multiply the bits of bfloat16 as integers."""
    if INTERPRETED:
        product = tl.dot(w.to(tl.float32), x.to(tl.float32), input_precision="ieee")
    else:
        product = tl.dot(w, x, input_precision="ieee")
    return product
