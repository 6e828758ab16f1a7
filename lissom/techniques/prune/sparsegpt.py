"""SparseGPT: prune column by column and let the columns not yet reached make good the error.

Frantar, Alistarh, ICML 2023, arXiv:2301.00774, algorithm 1 and eq. (7).

    S_ij = W_ij² / U_jj²        with the weights as the sweep has left them, H⁻¹ = UᵀU

The mask is chosen for a block of columns at a time (compared over the block), or for each N:M group when it is reached.

Shapes: o outputs, i inputs.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lissom.errors import RecipeError
from lissom.formats import Masked, Weight
from lissom.statistics import Gram
from lissom.techniques.prune.select import check, keep_largest, unless_pruned
from lissom.techniques.sweep import sweep

BLOCK = 128


def sparsegpt(
    w: Weight,
    x: Gram,
    /,
    *,
    sparsity: float = 0.5,
    keep: int | None = None,
    of: int | None = None,
    damp: float = 0.01,
) -> Masked:
    """Remove the fraction `sparsity`, or keep `keep` of every `of` inputs; the kept weights change too."""
    matrix, earlier = w.dense(), w.kept()
    check(sparsity, keep, of, matrix.shape[1])
    if of is not None and BLOCK % of:
        raise RecipeError(f"of={of} must divide {BLOCK}, of which columns the mask is chosen together")
    size = (matrix.shape[1], matrix.shape[0])  # (i, o), as the sweep runs
    kept = torch.zeros(size, dtype=torch.bool, device=matrix.device)
    group = of or BLOCK

    def column(j: int, block: Float[Tensor, "k o"], u: Float[Tensor, " k"], place: int) -> Float[Tensor, " o"]:
        if place % group == 0:
            ahead = slice(place, place + group)
            before = None if earlier is None else earlier[:, j : j + group]
            score = unless_pruned((block[ahead] / u[ahead, None]).square().T, before)
            kept[j : j + group] = choose(score, sparsity, keep, of).T
        return block[place] * kept[j]

    swept = sweep(matrix, x.xtx, column, damp=damp, block=BLOCK)
    return Masked.of(swept, kept.T)


def choose(score: Float[Tensor, "o k"], sparsity: float, keep: int | None, of: int | None) -> Bool[Tensor, "o k"]:
    """The mask of the columns ahead: within each N:M group, or over all of them."""
    one = score if of else score.reshape(1, -1)
    return keep_largest(one, sparsity, keep, of).reshape(score.shape) & (score > -torch.inf)
