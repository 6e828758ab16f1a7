"""Palette: weights that share values; a codebook of 2^b entries and an index for each weight.

`rows` rows of the matrix share a codebook. The codebooks are a matrix themselves, one row each, written in any format:
float16, or integers once the palette has been quantized. Two things may be added: an entry may stand for `width`
inputs that follow one another, and groups of a row's inputs may have a scale by which their entries are multiplied.

Shapes: o outputs, i inputs, p = ceil(o / rows) codebooks, e = 2^b entries of each, d inputs of an entry (`width`),
m = i / d places of a row, g groups of a row.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from lissom.formats.affine import Affine
from lissom.formats.dense import Dense
from lissom.formats.plane import Plane, bitmask, from_bitmask
from lissom.formats.weight import Parts, Spec, Taken, Trainable, Weight, by_way_of, lying, stored, straight_through

BOOKS: dict[str, type[Weight]] = {"dense": Dense, "affine": Affine}
NESTED = "_codebook"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Palette(Weight):
    """Indices of b bits into the codebook of their row.

    `mask` says which weights were kept where an entry stands for several; else the plane does.
    """

    plane: Plane
    codebook: Weight
    rows: int = field(default=1)
    width: int = field(default=1)
    scale: Float[Tensor, "o g"] | None = field(default=None)
    mask: UInt8[Tensor, " k"] | None = field(default=None)

    @classmethod
    def of(
        cls,
        indices: UInt8[Tensor, "o m"],
        codebook: Float[Tensor, "p ed"],
        rows: int,
        kept: Bool[Tensor, "o i"] | None = None,
        *,
        width: int = 1,
        scale: Float[Tensor, "o g"] | None = None,
    ) -> "Palette":
        """Pack indices; codebook and scales are stored in float16 where that holds them."""
        bits = max(1, (codebook.shape[1] // width - 1).bit_length())
        mask = None if width == 1 or kept is None or bool(kept.all()) else bitmask(kept)
        return cls(
            plane=Plane.of(indices, bits, kept if width == 1 else None),
            codebook=Dense(values=stored(codebook)),
            rows=rows,
            width=width,
            scale=None if scale is None else stored(scale),
            mask=mask,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        return self.plane.shape[0], self.plane.shape[1] * self.width

    @property
    def bits(self) -> int:
        """Bits of an index."""
        return self.plane.bits

    def dense(self) -> Float[Tensor, "o i"]:
        """The matrix in float32."""
        return torch.ops.lissom.palette_dense(*self._flat(), self.scale, self.width)  # type: ignore[no-any-return]

    def linear(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ."""
        return torch.ops.lissom.palette_linear(  # type: ignore[no-any-return]
            x, *self._flat(), self.scale, self.width
        )

    def _flat(self) -> tuple[Tensor, Tensor | None, Tensor, int, int, int, int]:
        mask = self.plane.mask if self.width == 1 else self.mask
        return self.plane.words, mask, self.codebook.dense(), self.rows, self.bits, *self.shape

    def kept(self) -> Bool[Tensor, "o i"] | None:
        """Which weights were not pruned; None means all."""
        if self.width == 1:
            return self.plane.kept()
        return None if self.mask is None else from_bitmask(self.mask, self.shape)

    def parts(self) -> dict[str, Tensor]:
        """Indices, bitmask and scales where there are any, and the codebook's own parts."""
        mask = self.plane.mask if self.width == 1 else self.mask
        own = {"_packed": self.plane.words, "_bitmask": mask, "_scale": self.scale}
        nested = {NESTED + name: part for name, part in self.codebook.parts().items()}
        return {name: part for name, part in own.items() if part is not None} | nested

    def spec(self) -> dict[str, Any]:
        """Shape, bits, rows and the codebook's own spec; width and group where there are such."""
        more = {"width": self.width} if self.width > 1 else {}
        if self.scale is not None:
            more["group"] = self.shape[1] // self.scale.shape[1]
        return {
            "format": "palette",
            "shape": list(self.shape),
            "bits": self.bits,
            "rows": self.rows,
            "codebook": self.codebook.spec(),
            **more,
        }

    @classmethod
    def of_parts(cls, spec: Spec, parts: Parts) -> "Palette":
        """The inverse of `parts` and `spec`."""
        (o, i), book, width = spec["shape"], spec["codebook"], spec.get("width", 1)
        mask, scale = parts.get("_bitmask"), parts["_scale"] if "group" in spec else None
        plane = Plane(
            words=parts["_packed"], mask=mask if width == 1 else None, shape=(o, i // width), bits=spec["bits"]
        )
        nested = {name.removeprefix(NESTED): part for name, part in parts.items() if name.startswith(NESTED)}
        return cls(
            plane=plane,
            codebook=BOOKS[book["format"]].of_parts(book, nested),
            rows=spec["rows"],
            width=width,
            scale=scale,
            mask=None if width == 1 else mask,
        )

    def trainable(self) -> Trainable:
        """The codebook's entries, and scales where there are any; which weight uses which stays as it is."""
        return TrainablePalette(self)


class TrainablePalette(Trainable):
    """The codebook's entries; each gets the summed gradient of the weights that share it.

    Han, Mao, Dally, ICLR 2016, arXiv:1510.00149, section 3. Scales are trained by the logarithm of their growth.
    """

    place: Tensor
    keep: Tensor | None
    scale: Tensor | None

    def __init__(self, weight: Palette) -> None:
        super().__init__()
        self.written = weight
        self.codebook = weight.codebook.trainable()
        entries = weight.codebook.shape[1] // weight.width
        self.register_buffer("place", places(weight.plane.codes(), weight.rows, entries, weight.width))
        self.register_buffer("keep", weight.kept())
        self.register_buffer("scale", None if weight.scale is None else weight.scale.float())
        self.log_growth = None if self.scale is None else nn.Parameter(torch.zeros_like(self.scale))

    def _grown(self) -> Float[Tensor, "o g"] | None:
        if self.scale is None or self.log_growth is None:
            return None
        grown = self.scale * self.log_growth.exp()
        return straight_through(grown, stored(grown.detach()).float())

    def taken(self, dim: int, places: Int[Tensor, " n"]) -> Taken:
        """Indices, and scales by whole groups; codebooks belong to all."""
        return lying(self, (self.place.shape[0], self.place.shape[1]), dim, places)

    def forward(self) -> Float[Tensor, "o i"]:
        """The matrix."""
        matrix: Tensor = multiplied(self.codebook().flatten()[self.place], self._grown())
        return matrix if self.keep is None else matrix * self.keep

    @torch.no_grad()
    def weight(self) -> Palette:
        """The matrix in its format."""
        grown = self._grown()
        scale = None if grown is None else stored(grown)
        return dataclasses.replace(self.written, codebook=self.codebook.weight(), scale=scale)


def places(indices: UInt8[Tensor, "o m"], rows: int, entries: int, width: int = 1) -> Int[Tensor, "o i"]:
    """Where each weight's value stands in the flattened codebooks."""
    book = torch.arange(indices.shape[0], device=indices.device) // rows
    first = (indices.long() + (book * entries).unsqueeze(1)) * width
    return (first.unsqueeze(2) + torch.arange(width, device=indices.device)).flatten(1)


def multiplied(matrix: Float[Tensor, "o i"], scale: Float[Tensor, "o g"] | None) -> Float[Tensor, "o i"]:
    """Each group of inputs times its scale."""
    if scale is None:
        return matrix
    grouped: Tensor = matrix.unflatten(1, (scale.shape[1], -1)) * scale.float().unsqueeze(2)
    return grouped.flatten(1)


@torch.library.custom_op("lissom::palette_dense", mutates_args=())
def palette_dense(
    words: Tensor,
    mask: Tensor | None,
    codebook: Tensor,
    book_rows: int,
    bits: int,
    rows: int,
    columns: int,
    scale: Tensor | None = None,
    width: int = 1,
) -> Tensor:
    """Look each index up in the codebook of its row, times its group's scale; zero where the mask is."""
    plane = Plane(words=words, mask=mask if width == 1 else None, shape=(rows, columns // width), bits=bits)
    matrix = codebook.float().flatten()[places(plane.codes(), book_rows, codebook.shape[1] // width, width)]
    matrix = multiplied(matrix, scale)
    kept = None if mask is None else from_bitmask(mask, (rows, columns))
    return matrix if kept is None else matrix * kept


@palette_dense.register_fake
def _(
    words: Tensor,
    mask: Tensor | None,
    codebook: Tensor,
    book_rows: int,
    bits: int,
    rows: int,
    columns: int,
    scale: Tensor | None = None,
    width: int = 1,
) -> Tensor:
    return codebook.new_empty((rows, columns), dtype=torch.float32)


@torch.library.custom_op("lissom::palette_linear", mutates_args=())
def palette_linear(
    x: Tensor,
    words: Tensor,
    mask: Tensor | None,
    codebook: Tensor,
    book_rows: int,
    bits: int,
    rows: int,
    columns: int,
    scale: Tensor | None = None,
    width: int = 1,
) -> Tensor:
    """x Wᵀ by way of the dense matrix."""
    dense = palette_dense(words, mask, codebook, book_rows, bits, rows, columns, scale, width)
    return torch.nn.functional.linear(x, dense.to(x.dtype))


palette_linear.register_fake(by_way_of(palette_dense))
