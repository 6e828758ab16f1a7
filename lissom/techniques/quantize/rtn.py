"""RTN: round each weight to the nearest point of its group's grid.

The baseline of every quantization paper (e.g. Dettmers et al., NeurIPS 2022, arXiv:2208.07339, section 2), here with a
search for the clipping range weighted by the input's power, min over c of Σ_j E[x_j²] (w_j - Q_c(w_j))².

Of shared weights the shared values are rounded, and they stay shared; of a product both factors; of a sum the base.

Shapes: o outputs, i inputs.
"""

from dataclasses import replace
from functools import partial

from lissom.formats import Affine, Dense, LowRank, Palette, Sum, Weight
from lissom.statistics import Moments
from lissom.techniques.quantize.grid import fit


def rtn(
    w: Weight,
    x: Moments,
    /,
    *,
    bits: int = 8,
    group: int = 0,
    symmetric: bool = True,
    clip: bool = True,
    scale_bits: int = 16,
) -> Affine | Palette | LowRank | Sum:
    """Integers of `bits` bits; `group` inputs share a scale (0: a whole row does) of `scale_bits` bits, 16 or 8."""
    again = partial(rtn, bits=bits, symmetric=symmetric, clip=clip, scale_bits=scale_bits)
    if isinstance(w, Palette) and w.bits <= bits and isinstance(w.codebook, Dense):
        return replace(w, codebook=again(w.codebook, Moments.blank(w.codebook.shape[1], w.codebook.device)))
    if isinstance(w, Sum):
        return replace(w, base=again(w.base, x, group=group))
    if isinstance(w, LowRank):
        return LowRank(a=again(w.a, Moments.blank(w.rank, w.a.device)), b=again(w.b, x, group=group))
    matrix = w.dense()
    grid = fit(matrix, x.power, bits=bits, group=group, symmetric=symmetric, clip=clip, scale_bits=scale_bits)
    return Affine.of(grid.codes(matrix), grid.scale, grid.stored_zero(), bits, w.kept(), grid.step)
