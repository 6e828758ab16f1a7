"""Magnitude: keep the large weights.

Han, Pool, Tran, Dally, NeurIPS 2015, arXiv:1506.02626, section 3.

    S_ij = |W_ij|        compared over the whole matrix, or within each N:M group

A weight that is 0 counts as pruned: with `sparsity` 0 the zeros that a matrix has become its mask, and stay zeros.

Shapes: o outputs, i inputs.
"""

from lissom.formats import Masked, Weight
from lissom.techniques.prune.select import keep_largest, unless_pruned


def magnitude(w: Weight, /, *, sparsity: float = 0.5, keep: int | None = None, of: int | None = None) -> Masked:
    """Remove the fraction `sparsity` of smallest weights, or keep `keep` of every `of` inputs."""
    matrix = w.dense()
    score = unless_pruned(matrix.abs(), w.kept())
    kept = keep_largest(score if of else score.reshape(1, -1), sparsity, keep, of).reshape(matrix.shape)
    return Masked.of(matrix, kept & (score > -float("inf")) & (matrix != 0))
