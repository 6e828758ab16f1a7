"""Wanda: keep the weights that are large and are listened to.

Sun, Liu, Bair, Kolter, ICLR 2024, arXiv:2306.11695, eq. (1).

    S_ij = |W_ij| · ‖X_j‖₂        compared within each output row

Shapes: o outputs, i inputs.
"""

from lissom.formats import Masked, Weight
from lissom.statistics import Moments
from lissom.techniques.prune.select import keep_largest, unless_pruned


def wanda(w: Weight, x: Moments, /, *, sparsity: float = 0.5, keep: int | None = None, of: int | None = None) -> Masked:
    """Remove the fraction `sparsity` of each row, or keep `keep` of every `of` inputs."""
    matrix = w.dense()
    score = unless_pruned(matrix.abs() * x.norm, w.kept())
    return Masked.of(matrix, keep_largest(score, sparsity, keep, of) & (score > -float("inf")))
