"""LNQ: codebooks fitted under the Gram, by turns with the choice of each weight's entry.

Kim, Hwang, Lee, Kim, GuidedQuant, ICML 2025, arXiv:2505.07004, section 4 and algorithm 2, layer-wise non-uniform
quantization: for each row

    min over c, P of (w - P c) H (w - P c)ᵀ       c = (Pᵀ H P)⁻¹ Pᵀ H w, then each weight's entry while the others stay

It starts from the k-means codebook and the indices of a column sweep with error feedback; from there E only falls.
The paper has a codebook for each row; rows that share one get a scale here, of each group of their inputs.

Shapes: o outputs, i inputs.
"""

from lissom.formats import Palette, Weight
from lissom.statistics import Gram
from lissom.techniques.share.vectors import shared_by_vectors


def lnq(
    w: Weight, x: Gram, /, *, bits: int = 4, rows: int = 0, group: int = 0, iterations: int = 10, damp: float = 0.01
) -> Palette:
    """A codebook of 2^bits entries for each `rows` rows (0: one for the matrix), a scale for each `group` inputs.

    `group` 0 is one scale a row, and none where a row has a codebook of its own.
    """
    return shared_by_vectors(w, x, bits=bits, width=1, rows=rows, group=group, iterations=iterations, damp=damp)
