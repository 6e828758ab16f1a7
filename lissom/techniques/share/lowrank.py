"""Low rank: a matrix as the product of two narrow ones, chosen for the outputs that the data makes.

Wang, Zheng, Wan, Zhang, SVD-LLM, ICLR 2025, arXiv:2403.07378, section 3.1:

    S Sᵀ = XᵀX        W S = U Σ Vᵀ        W ≈ A B,  A B = U_r Σ_r V_rᵀ S⁻¹

No S is needed: since Σ_r V_rᵀ = U_rᵀ W S, the same product is A = U_r, B = U_rᵀ W, where U_r holds the leading
eigenvectors of W XᵀX Wᵀ, the Gram of the outputs. So nothing is inverted, and inputs that are never driven do no harm.

Shapes: o outputs, i inputs, r the rank.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lissom.errors import RecipeError
from lissom.formats import LowRank, Weight
from lissom.statistics import Gram


def lowrank(w: Weight, x: Gram, /, *, rank: int | None = None, keep: float = 0.8) -> LowRank:
    """Two factors in float16, of `rank`, or with the fraction `keep` of the matrix's parameters.

    Raises:
        RecipeError: the factors would be no smaller than the matrix, or the weight is pruned, which no product keeps.
    """
    kept = w.kept()
    if kept is not None and not kept.all():
        raise RecipeError(
            "a product of two matrices cannot keep pruned weights at zero; leave out one of the two steps "
            "or write the error of pruning as low rank with residual, in a layer"
        )
    matrix = w.dense()
    u = directions(matrix, x.mean, rank_of(*w.shape, rank, keep))
    return LowRank.of(u, u.T @ matrix)


def rank_of(o: int, i: int, rank: int | None, keep: float) -> int:
    """The rank to use; r (o + i) numbers stand for o i.

    Raises:
        RecipeError: there is no such rank.
    """
    if not 0 < keep <= 1:
        raise RecipeError(f"keep={keep} is no fraction of the parameters; choose one above 0 and up to 1")
    found = max(1, int(keep * o * i / (o + i))) if rank is None else rank
    most = o * i // (o + i)
    if not 1 <= found <= most:
        raise RecipeError(f"rank={found} does not make {o}x{i} weights smaller; choose 1 to {most}, or other layers,")
    return found


def directions(w: Float[Tensor, "o i"], h: Float[Tensor, "i i"], rank: int) -> Float[Tensor, "o r"]:
    """The orthonormal directions in which the outputs X Wᵀ are largest: leading eigenvectors of W H Wᵀ.

    They lie in the span of the columns of W, so that no matrix larger than the smaller side is decomposed.

    Raises:
        RecipeError: the matrix has no such rank.
    """
    if not 1 <= rank <= min(w.shape):
        raise RecipeError(f"rank={rank} does not suit {w.shape[0]}x{w.shape[1]} weights; choose 1 to {min(w.shape)}")
    w = w.double()
    basis, w = torch.linalg.qr(w) if w.shape[0] > w.shape[1] else (None, w)
    outputs = w @ h.double() @ w.T
    leading = torch.linalg.eigh((outputs + outputs.T) / 2).eigenvectors[:, -rank:].flip(1)
    found: Tensor = leading if basis is None else basis @ leading
    return found.float()
