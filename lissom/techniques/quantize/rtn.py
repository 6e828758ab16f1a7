"""RTN: round each weight to the nearest point of its group's grid.

The baseline of every quantization paper (e.g. Dettmers et al., NeurIPS 2022, arXiv:2208.07339, section 2), here with a
search for the clipping range weighted by the input's power, min over c of Σ_j E[x_j²] (w_j - Q_c(w_j))².

Of shared weights the shared values are rounded, and they stay shared.

Shapes: o outputs, i inputs.
"""

from dataclasses import replace

from lissom.formats import Affine, Dense, Palette, Weight
from lissom.statistics import Moments
from lissom.techniques.quantize.grid import fit


def rtn(
    w: Weight, x: Moments, /, *, bits: int = 8, group: int = 0, symmetric: bool = True, clip: bool = True
) -> Affine | Palette:
    """Integers of `bits` bits; `group` inputs share a scale (0: a whole row does)."""
    if isinstance(w, Palette) and w.bits <= bits and isinstance(w.codebook, Dense):
        book = w.codebook
        return replace(w, codebook=rtn(book, Moments.blank(book.shape[1]), bits=bits, symmetric=symmetric, clip=clip))
    matrix = w.dense()
    grid = fit(matrix, x.power, bits=bits, group=group, symmetric=symmetric, clip=clip)
    return Affine.of(grid.codes(matrix), grid.scale, grid.stored_zero(), bits, w.kept())
