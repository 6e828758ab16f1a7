"""Integer and shared weights times inputs of 8 bits: one kernel for every format that is codes on a grid.

    y_o = unit_o Σ_b s_ob a_b ( Σ_{j in b} q_j c_oj  -  z_ob Σ_{j in b} q_j )        a_b = max_{j in b} |x_j| / 127
                                                                                     q_j = round(127 x_j / max |x|)

Inputs become integers as they come, in blocks of at most 128 that share a scale, or of a whole group of weights once
that was asked for (`merge`); where the format says so (`Dynamic`) in one block, of its number of levels. Codes have 1,
2, 3, 4 or 8 bits; those of a codebook are looked up first, and its entries have 8 bits. The sums of integers are exact.
In C where that was built (native/), else by its definition in PyTorch, which decodes the weight at every call.

Shapes: o outputs, i inputs, g groups of a row, b blocks of a row, p panels of 32 outputs, e entries of a codebook.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lissom.engine.kernels import native
from lissom.engine.kernels.layer import KernelLinear
from lissom.engine.kernels.native import calls
from lissom.formats import (
    Affine,
    Binary,
    CompressedLayer,
    Dynamic,
    Palette,
    Ternary,
    Weight,
)
from lissom.formats.plane import Plane

LANES, CHUNK, QUARTET = 32, 32, 4  # outputs of a panel; inputs of a chunk, and of a vector
BLOCK = 128  # the most inputs that share a scale where each block has its own
EXACT = 2**16  # inputs whose products 32 bits hold the sum of
MIDDLE, MOST = 128, 127  # the code of zero where codes are signed numbers of 8 bits, and the largest of these


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A matrix as codes: w = unit · scale · (book[code] - zero); without a book the code stands for itself.

    A plane from which nothing was pruned is taken as it is stored.
    """

    codes: UInt8[Tensor, "o i"] | Plane
    bits: int
    scale: Float[Tensor, "o g"]
    zero: int | UInt8[Tensor, "o g"]
    unit: Float[Tensor, " o"] | None = None
    book: UInt8[Tensor, "n e"] | None = None
    rows: int = 1  # that share a codebook
    levels: int = 0  # of inputs: 0 means 127 in each block

    def indices(self) -> UInt8[Tensor, "o i"]:
        """The codes, also of a plane."""
        return self.codes.codes() if isinstance(self.codes, Plane) else self.codes


def codes_of(plane: Plane) -> UInt8[Tensor, "o i"] | Plane:
    """The plane, if the library packs it as it is stored; else its codes."""
    return plane if plane.mask is None and native.kernels() else plane.codes()


def affine_grid(weight: Affine) -> Grid:
    """Its own codes; a pruned weight is the code of zero, and 5 to 7 bits become 8."""
    zero = weight.zero.codes() if weight.zero is not None else 2 ** (weight.bits - 1)
    codes, kept = codes_of(weight.plane), weight.kept()
    if kept is not None:
        assert isinstance(codes, Tensor)
        silent = zero.repeat_interleave(weight.group, 1) if isinstance(zero, Tensor) else codes.new_tensor(zero)
        codes = torch.where(kept, codes, silent)
    return Grid(codes=codes, bits=weight.bits if weight.bits <= 4 else 8, scale=weight.scale.float(), zero=zero)


def dynamic_grid(weight: Dynamic) -> Grid | None:
    """Its integer weight, and the levels of inputs; inputs of more than 8 bits have no kernel."""
    if weight.inputs > 8:
        return None
    return dataclasses.replace(affine_grid(weight.affine), levels=2 ** (weight.inputs - 1) - 1)


def ternary_grid(weight: Ternary) -> Grid:
    """Trits are codes of 2 bits."""
    return Grid(codes=weight.trits(), bits=2, scale=weight.scale.float(), zero=1)


def binary_grid(weight: Binary) -> Grid:
    """A bit stands for 0 or 2; with pruned weights, which are 1, they are trits."""
    codes, kept = codes_of(weight.plane), weight.kept()
    if kept is not None:
        codes = torch.where(kept, 2 * weight.plane.codes(), 1)
    return Grid(codes=codes, bits=1 if kept is None else 2, scale=weight.scale.float(), zero=1)


def palette_grid(weight: Palette) -> Grid:
    """Indices into tables of bytes; where an index has more than 4 bits, stands for several inputs or could not say
    that a weight was pruned, the bytes themselves.

    Bytes have a unit of their own for each output, or for the four that look up in one table: few outputs have a weight
    near the largest of a codebook, and next to it the others' would be coarse.
    """
    (o, i), books = weight.shape, weight.codebook.dense()
    owner = torch.arange(o) // weight.rows
    scale = torch.ones(o, 1) if weight.scale is None else weight.scale.float()
    kept = weight.kept()
    codes = codes_of(weight.plane)
    if weight.bits <= 4 and weight.width == 1 and kept is None:
        rows = QUARTET if len(books) == 1 or weight.rows % QUARTET == 0 else 1
        most = F.pad(largest(weight.plane.codes(), books.abs()[owner]), (0, -o % rows)).view(-1, rows).amax(1)
        book, unit = in_bytes(books[owner[::rows]], most)
        bits = max(weight.bits, 2)
        own = unit.repeat_interleave(rows)[:o]
        return Grid(codes=codes, bits=bits, scale=scale, zero=MIDDLE, unit=own, book=book, rows=rows)
    values = books.unflatten(1, (-1, weight.width))[owner.unsqueeze(1), weight.plane.codes().int()].reshape(o, i)
    values = values if kept is None else values.mul_(kept)
    entries, unit = in_bytes(values, values.abs().amax(1))
    return Grid(codes=entries, bits=8, scale=scale, zero=MIDDLE, unit=unit)


def largest(codes: UInt8[Tensor, "o i"], sizes: Float[Tensor, "o e"]) -> Float[Tensor, " o"]:
    """The largest size that a code of each row stands for."""
    order = sizes.argsort(1, descending=True)
    found, rows = sizes.new_zeros(len(sizes)), torch.arange(len(sizes))
    for each in order.unbind(1):
        own = codes if len(rows) == len(codes) else codes[rows]
        hit = (own ^ each[rows].to(codes.dtype).unsqueeze(1)).amin(1) == 0  # far faster than == and any
        found[rows[hit]] = sizes[rows[hit], each[rows[hit]]]
        rows = rows[~hit]
    return found


def in_bytes(
    values: Float[Tensor, "o n"], most: Float[Tensor, " o"]
) -> tuple[UInt8[Tensor, "o n"], Float[Tensor, " o"]]:
    """Values as signed bytes, zero in the middle, and the unit of each row; what is beyond its most is not read."""
    unit = torch.where(most > 0, most / MOST, 1.0)
    return (values / unit.unsqueeze(1)).round_().clamp_(-MOST, MOST).add_(MIDDLE).to(torch.uint8), unit


GRIDS: dict[type[Weight], Callable[[Any], Grid | None]] = {
    Affine: affine_grid,
    Binary: binary_grid,
    Dynamic: dynamic_grid,
    Palette: palette_grid,
    Ternary: ternary_grid,
}


def grid_of(weight: Weight) -> Grid | None:
    """The weight as codes on a grid, or None where it is none."""
    make = GRIDS.get(type(weight))
    return None if make is None else make(weight)


def panel_layer(layer: CompressedLayer) -> "PanelLinear | None":
    """The layer on this kernel, or None where its weight is no grid of codes, or is not on the CPU."""
    grid = grid_here(layer)
    return None if grid is None else PanelLinear(grid, layer.bias)


def grid_here(layer: CompressedLayer) -> Grid | None:
    """The weight as codes on a grid, if it is that and on the CPU."""
    on_cpu = all(part.device.type == "cpu" for part in layer.matrix.buffers())
    return grid_of(layer.weight) if on_cpu else None


class PanelLinear(KernelLinear):
    """A linear layer on panels (native/panels.h): codes, scales and zeros as the kernel reads them."""

    codes: Tensor
    scale: Tensor
    unit: Tensor
    zeros: Tensor | None
    book: Tensor | None
    bias: Tensor | None

    def __init__(self, grid: Grid, bias: Tensor | None) -> None:
        super().__init__()
        o, i = grid.codes.shape
        group = i // grid.scale.shape[1]
        wide = -(-group // CHUNK) * CHUNK
        whole = (wide,) if grid.levels and wide <= EXACT else ()
        block = next(size for size in (*whole, BLOCK, BLOCK // 2, CHUNK) if wide % size == 0)
        unit, scale = halved(grid.scale)
        self.shape, self.bits, self.block, self.levels = (o, i), grid.bits, block, grid.levels
        self.group, self.wide, self.width = group, wide, wide * grid.scale.shape[1]
        self.zero = grid.zero if isinstance(grid.zero, int) else 0
        zeros = None if isinstance(grid.zero, int) else by_panel(grid.zero.repeat_interleave(wide // block, 1))
        self.register_buffer("codes", self._packed(grid))
        self.register_buffer("scale", by_panel(scale.repeat_interleave(wide // block, 1)))
        self.register_buffer("unit", by_panel((unit if grid.unit is None else unit * grid.unit).unsqueeze(1)))
        self.register_buffer("zeros", zeros)
        self.register_buffer("book", None if grid.book is None else shelved(grid.book, grid.rows, o))
        self.register_buffer("bias", None if bias is None else by_panel(bias.detach().float().unsqueeze(1)))
        self._places: tuple[int | None, ...] = ()
        self._given = native.Given(b"", b"")

    def _packed(self, grid: Grid) -> UInt8[Tensor, "p c n"]:
        if isinstance(grid.codes, Tensor):
            return packed(spaced(grid.codes, self.group, self.wide), grid.bits)
        size = (-(-self.shape[0] // LANES), self.width // CHUNK, grid.bits * LANES * CHUNK // 8)
        panels = torch.empty(size, dtype=torch.uint8)
        calls.pack(grid.codes.words, grid.codes.bits, self.layout, grid.bits, panels)
        return panels

    def multiply(self, rows: Float[Tensor, "n i"], kernel: str) -> Float[Tensor, "n o"]:
        """Rows times panels, and the bias."""
        return calls.linear(self.given(), rows, self.shape[0], kernel)

    @property
    def layout(self) -> tuple[int, int, int, int]:
        """Inputs, those that share a scale, these with their padding, and the levels of inputs."""
        return self.shape[1], self.group, self.wide, self.levels

    def given(self) -> native.Given:
        """What the library is given, made anew only when a tensor lies elsewhere than before."""
        held = self._buffers
        tensors = [held[name] for name in ("codes", "scale", "zeros", "book", "unit", "bias")]
        places = tuple([None if part is None else part.data_ptr() for part in tensors])
        if places != self._places:
            books = 0 if self.book is None else self.book.shape[2]
            sizes = (self.shape[0], self.width, self.block, self.bits, books, self.zero)
            self._places, self._given = places, native.Given.of((*sizes, *places), self.layout)
        return self._given

    def merge(self) -> None:
        """From now on all inputs of a group share a scale, if 32 bits hold their sum: coarser, and faster."""
        if self.wide > EXACT:
            return
        every = self.wide // self.block
        self.block, self.scale = self.wide, self.scale[:, ::every].contiguous()
        self.zeros = None if self.zeros is None else self.zeros[:, ::every].contiguous()

    def rescale(self, factor: Float[Tensor, " o"], shift: Float[Tensor, " o"]) -> None:
        """Multiply and move what comes out."""
        bias = 0.0 if self.bias is None else self.bias * by_panel(factor.unsqueeze(1))
        self.unit, self.bias = self.unit * by_panel(factor.unsqueeze(1)), bias + by_panel(shift.unsqueeze(1))

    def definition(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """What the kernels compute, in PyTorch."""
        bias = None if self.bias is None else by_output(self.bias)[: self.shape[0], 0]
        return F.linear(self.integers(x.float()), self.matrix(), bias).to(x.dtype)

    def integers(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n i"]:
        """a q: the input on the grid of its row, or of each of its blocks."""
        blocks = x if self.levels else F.pad(x.unflatten(-1, (-1, self.group)), (0, self.wide - self.group))
        blocks = blocks.flatten(x.dim() - 1).unflatten(-1, (-1, x.shape[-1] if self.levels else self.block))
        most, levels = blocks.abs().amax(-1, keepdim=True), self.levels or MOST
        factor = torch.full_like(most, levels) / most  # PyTorch's `levels / most` would round twice
        q = (blocks * torch.where(most > 0, factor, 0.0)).round()
        rows = (q * (most / levels)).flatten(-2)
        made: Tensor = rows if self.levels else rows.unflatten(-1, (-1, self.wide))[..., : self.group].flatten(-2)
        return made

    def matrix(self) -> Float[Tensor, "o i"]:
        """The weight again."""
        return self.panels(slice(None))[: self.shape[0]]

    def look_up(self, which: Int[Tensor, " n"]) -> Float[Tensor, "n i"]:
        """Some rows of the weight."""
        if native.kernels():
            return calls.panel_rows(self.given(), which, self.shape[1])
        return self.panels(which // LANES)[torch.arange(len(which)) * LANES + which % LANES]

    def panels(self, which: slice | Int[Tensor, " p"]) -> Float[Tensor, "o i"]:
        """All rows of some panels, with the outputs that they were filled up with."""
        scale = (by_output(self.scale[which]).float() * by_output(self.unit[which])).repeat_interleave(self.block, 1)
        return self.close(self.whole(which) * scale)

    def whole(self, which: slice | Int[Tensor, " p"]) -> Float[Tensor, "o w"]:
        """Their whole numbers: codes, or what these stand for, less the zero."""
        codes = unpacked(self.codes[which], self.bits)
        if self.book is not None:
            codes = unshelved(self.book[which]).gather(1, codes.long())
        zero: Tensor | int = self.zero
        if self.zeros is not None:
            zero = by_output(self.zeros[which]).float().repeat_interleave(self.block, 1)
        return codes.float() - zero

    def close(self, spaced: Float[Tensor, "o w"]) -> Float[Tensor, "o i"]:
        """The inputs without what their groups were filled up with."""
        rows: Tensor = spaced.unflatten(1, (-1, self.wide))[..., : self.group].flatten(1)
        return rows


def halved(scale: Float[Tensor, "o g"]) -> tuple[Float[Tensor, " o"], Float[Tensor, "o g"]]:
    """Scales as a power of two for each row, and half floats that it multiplies: no row is too small for these."""
    most = scale.abs().amax(1)
    unit = torch.where(most > 0, torch.exp2(most.log2().floor()), 1.0)
    return unit, (scale / unit.unsqueeze(1)).half()


def spaced(codes: UInt8[Tensor, "o i"], group: int, wide: int) -> UInt8[Tensor, "o w"]:
    """Each group of inputs filled up to whole chunks."""
    grouped: Tensor = codes.unflatten(1, (-1, group))
    return F.pad(grouped, (0, wide - group)).flatten(1)


def by_panel(rows: Tensor) -> Tensor:
    """(o, b) as (p, b, 32): what belongs to the outputs of a panel lies together; filled up with zeros."""
    filled: Tensor = F.pad(rows, (0, 0, 0, -len(rows) % LANES)).unflatten(0, (-1, LANES))
    return filled.transpose(1, 2).contiguous()


def by_output(panels: Tensor) -> Tensor:
    """The inverse, with what it was filled up with."""
    return panels.transpose(1, 2).flatten(0, 1)


def packed(codes: UInt8[Tensor, "o w"], bits: int) -> UInt8[Tensor, "p c n"]:
    """Codes as native/panels.h says: n bytes for each chunk of 32 inputs of a panel."""
    whole = F.pad(codes, (0, 0, 0, -len(codes) % LANES))
    parts = whole.view(len(whole) // LANES, 2, 16, -1, CHUNK // QUARTET, QUARTET).permute(0, 3, 4, 1, 2, 5)
    planes = [folded(parts, bits)] if bits != 3 else [folded(parts & 3, 2), folded(parts >> 2, 1)]
    return torch.cat([plane.flatten(2) for plane in planes], 2)


def folded(parts: UInt8[Tensor, "p c t h l q"], bits: int) -> UInt8[Tensor, "p c f h l q"]:
    """Consecutive parts in the fields of one, the first lowest."""
    fields = parts.unflatten(2, (-1, 8 // bits))
    made: Tensor = fields[:, :, :, 0].clone()
    for place in range(1, 8 // bits):
        made |= fields[:, :, :, place] << (place * bits)
    return made


def unpacked(panels: UInt8[Tensor, "p c n"], bits: int) -> UInt8[Tensor, "o w"]:
    """The inverse of `packed`, with the outputs it was filled up with; codes of 1 bit are 0 or 2."""
    if bits == 3:
        low, high = panels.split([LANES * CHUNK // 4, LANES * CHUNK // 8], 2)
        return unpacked(low, 2) | (unpacked(high, 1) << 1)
    octets = panels.unflatten(2, (-1, 1, 2, 16, QUARTET))
    fields = torch.cat([octets >> place & (2**bits - 1) for place in range(0, 8, bits)], 3)
    codes = fields.flatten(2, 3).permute(0, 3, 4, 1, 2, 5).reshape(len(panels) * LANES, -1)
    return codes << 1 if bits == 1 else codes


def shelved(book: UInt8[Tensor, "n e"], rows: int, outputs: int) -> UInt8[Tensor, "p 2 k 64"]:
    """Codebooks where the kernel looks entries up: one for every 4 outputs where they share it, else one for each."""
    filled = F.pad(book, (0, 16 - book.shape[1]))[torch.arange(outputs) // rows]
    whole = F.pad(filled, (0, 0, 0, -outputs % LANES)).view(-1, 2, 4, QUARTET, 16)
    tables = whole.transpose(2, 3).flatten(3)
    shared = len(book) == 1 or rows % QUARTET == 0
    return (tables[:, :, :1] if shared else tables).contiguous()


def unshelved(tables: UInt8[Tensor, "p 2 k 64"]) -> UInt8[Tensor, "o 16"]:
    """The codebook of each output."""
    each: Tensor = tables.unflatten(3, (4, 16)).transpose(2, 3)
    return each.expand(-1, -1, -1, QUARTET, -1).flatten(0, 3)
