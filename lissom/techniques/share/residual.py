"""Residual: what an earlier step got wrong, as a product of low rank beside what it wrote.

Zhang et al., QERA, ICLR 2025, arXiv:2410.06040, theorem 1; Liu et al., EoRA, 2024, arXiv:2410.21271, section 3:

    min over A, B of rank r  ‖X (W - V - A B)ᵀ‖²        A B = SVD_r((W - V) H^½) H^-½,  H = XᵀX

where W is the original and V what the earlier steps left. No root is taken: the same product is A = U_r,
B = U_rᵀ (W - V) with the leading eigenvectors of (W - V) H (W - V)ᵀ. The factors are rounded B first, and A then is the
least-squares one for the B that is stored, A = (W - V) H Bᵀ (B H Bᵀ)⁻¹.

Factors of 4 bits are nearly as good as those in float16: the same bytes are better spent on twice the rank of 8 bits.

Where V is pruned its zeros stay in the base; the correction is added beside them and is not sparse.

Shapes: o outputs, i inputs, r the rank.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lissom.formats import Affine, LowRank, Sum, Weight
from lissom.formats.lowrank import half
from lissom.statistics import Gram
from lissom.techniques.knobs import one_of
from lissom.techniques.quantize.grid import fit
from lissom.techniques.share.lowrank import directions

BITS = (*range(2, 9), 16)  # of a factor's numbers: integers, or float16


def residual(w: Weight, original: Weight, x: Gram, /, *, rank: int = 16, bits: int = 4) -> Sum:
    """The weight as it is, and beside it factors of `bits` bits (16: float16); an earlier correction is replaced.

    Raises:
        RecipeError: the rank is larger than the matrix, or the bits are stored by no format.
    """
    base = w.base if isinstance(w, Sum) else w
    return Sum(base=base, correction=correction(original.dense() - base.dense(), x, rank, bits))


def correction(error: Float[Tensor, "o i"], x: Gram, rank: int, bits: int) -> LowRank:
    """The product of rank r that is nearest to `error` under the Gram, in factors of `bits` bits."""
    u = directions(error, x.mean, rank)
    b = written(u.T @ error, x.power, bits)
    a = refitted(u, b.dense(), error, x.mean)
    return LowRank(a=written(a, error.new_ones(rank), bits), b=b)


def refitted(
    a: Float[Tensor, "o r"], b: Float[Tensor, "r i"], error: Float[Tensor, "o i"], h: Float[Tensor, "i i"]
) -> Float[Tensor, "o r"]:
    """The least-squares A for a B that was rounded; in directions that carry nothing, A as it was."""
    a, b, error, h = a.double(), b.double(), error.double(), h.double()
    heard = h @ b.T
    refit: Tensor = a + (error - a @ b) @ heard @ torch.linalg.pinv(b @ heard, hermitian=True)
    return refit.float()


def written(factor: Float[Tensor, "o i"], power: Float[Tensor, " i"], bits: int) -> Weight:
    """A factor in float16, or as integers with a scale for each row.

    Raises:
        RecipeError: the bits are stored by no format.
    """
    if bits == 16:
        return half(factor)
    one_of(BITS, bits=bits)
    grid = fit(factor, power, bits=bits, group=0, symmetric=True, clip=True)
    return Affine.of(grid.codes(factor), grid.scale, grid.stored_zero(), bits)
