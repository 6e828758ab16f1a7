"""Palette: weights that share values; a codebook of 2^b entries and an index for each weight.

`rows` rows of the matrix share a codebook. The codebooks are a matrix themselves, one row each, written in any format:
float16, or integers once the palette has been quantized.

Shapes: o outputs, i inputs, p = ceil(o / rows) codebooks, e = 2^b entries of each.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lissom.formats.affine import Affine
from lissom.formats.dense import Dense
from lissom.formats.plane import Plane
from lissom.formats.weight import Parts, Spec, Trainable, Weight, stored

BOOKS: dict[str, type[Weight]] = {"dense": Dense, "affine": Affine}
NESTED = "_codebook"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Palette(Weight):
    """Indices of b bits into the codebook of their row."""

    plane: Plane
    codebook: Weight
    rows: int = field(default=1)

    @classmethod
    def of(
        cls,
        indices: UInt8[Tensor, "o i"],
        codebook: Float[Tensor, "p e"],
        rows: int,
        kept: Bool[Tensor, "o i"] | None = None,
    ) -> "Palette":
        """Pack indices; the codebook is stored in float16 where that holds it."""
        bits = (codebook.shape[1] - 1).bit_length()
        return cls(plane=Plane.of(indices, bits, kept), codebook=Dense(values=stored(codebook)), rows=rows)

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        return self.plane.shape

    @property
    def bits(self) -> int:
        """Bits of an index."""
        return self.plane.bits

    def dense(self) -> Float[Tensor, "o i"]:
        """The matrix in float32."""
        codebook = self.codebook.dense()
        return torch.ops.lissom.palette_dense(  # type: ignore[no-any-return]
            self.plane.words, self.plane.mask, codebook, self.rows, self.bits, *self.shape
        )

    def linear(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ."""
        codebook = self.codebook.dense()
        return torch.ops.lissom.palette_linear(  # type: ignore[no-any-return]
            x, self.plane.words, self.plane.mask, codebook, self.rows, self.bits, *self.shape
        )

    def kept(self) -> Bool[Tensor, "o i"] | None:
        """Which weights were not pruned; None means all."""
        return self.plane.kept()

    def parts(self) -> dict[str, Tensor]:
        """Indices, bitmask where there is one, and the codebook's own parts."""
        own = {"_packed": self.plane.words, "_bitmask": self.plane.mask}
        nested = {NESTED + name: part for name, part in self.codebook.parts().items()}
        return {name: part for name, part in own.items() if part is not None} | nested

    def spec(self) -> dict[str, Any]:
        """Shape, bits, rows and the codebook's own spec."""
        return {
            "format": "palette",
            "shape": list(self.shape),
            "bits": self.bits,
            "rows": self.rows,
            "codebook": self.codebook.spec(),
        }

    @classmethod
    def of_parts(cls, spec: Spec, parts: Parts) -> "Palette":
        """The inverse of `parts` and `spec`."""
        (o, i), book = spec["shape"], spec["codebook"]
        plane = Plane(words=parts["_packed"], mask=parts.get("_bitmask"), shape=(o, i), bits=spec["bits"])
        nested = {name.removeprefix(NESTED): part for name, part in parts.items() if name.startswith(NESTED)}
        return cls(plane=plane, codebook=BOOKS[book["format"]].of_parts(book, nested), rows=spec["rows"])

    def trainable(self) -> Trainable:
        """The codebook's entries; which weight uses which stays as it is."""
        return TrainablePalette(self)


class TrainablePalette(Trainable):
    """The codebook's entries; each gets the summed gradient of the weights that share it.

    Han, Mao, Dally, ICLR 2016, arXiv:1510.00149, section 3.
    """

    place: Tensor
    keep: Tensor | None

    def __init__(self, weight: Palette) -> None:
        super().__init__()
        self.plane, self.rows = weight.plane, weight.rows
        self.codebook = weight.codebook.trainable()
        self.register_buffer("place", places(weight.plane.codes(), weight.rows, weight.codebook.shape[1]))
        self.register_buffer("keep", weight.kept())

    def forward(self) -> Float[Tensor, "o i"]:
        """The matrix."""
        matrix: Tensor = self.codebook().flatten()[self.place]
        return matrix if self.keep is None else matrix * self.keep

    def weight(self) -> Palette:
        """The matrix in its format."""
        return Palette(plane=self.plane, codebook=self.codebook.weight(), rows=self.rows)


def places(indices: UInt8[Tensor, "o i"], rows: int, entries: int) -> Tensor:
    """Where each weight's value stands in the flattened codebooks, (o, i)."""
    book = torch.arange(indices.shape[0], device=indices.device) // rows
    return indices.long() + (book * entries).unsqueeze(1)


@torch.library.custom_op("lissom::palette_dense", mutates_args=())
def palette_dense(
    words: Tensor, mask: Tensor | None, codebook: Tensor, book_rows: int, bits: int, rows: int, columns: int
) -> Tensor:
    """Look each index up in the codebook of its row; zero where the mask is."""
    plane = Plane(words=words, mask=mask, shape=(rows, columns), bits=bits)
    matrix = codebook.float().flatten()[places(plane.codes(), book_rows, codebook.shape[1])]
    kept = plane.kept()
    return matrix if kept is None else matrix * kept


@palette_dense.register_fake
def _(
    words: Tensor, mask: Tensor | None, codebook: Tensor, book_rows: int, bits: int, rows: int, columns: int
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
) -> Tensor:
    """x Wᵀ by way of the dense matrix."""
    dense = palette_dense(words, mask, codebook, book_rows, bits, rows, columns)
    return torch.nn.functional.linear(x, dense.to(x.dtype))


@palette_linear.register_fake
def _(
    x: Tensor,
    words: Tensor,
    mask: Tensor | None,
    codebook: Tensor,
    book_rows: int,
    bits: int,
    rows: int,
    columns: int,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))
