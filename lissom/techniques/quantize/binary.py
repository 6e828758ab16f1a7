"""Binary: each weight is its sign times one scale for the row.

Rastegari, Ordonez, Redmon, Farhadi, XNOR-Net, ECCV 2016, arXiv:1603.05279, eq. (4)-(6), with each input weighted by its
power, as in min over α, B of Σ_j E[x_j²] (w_j - α b_j)²:

    b_j = sign(w_j)        α = Σ_j E[x_j²] |w_j| / Σ_j E[x_j²]

Shapes: o outputs, i inputs.
"""

import torch

from lissom.formats import Binary, Weight
from lissom.statistics import Moments


def binary(w: Weight, x: Moments, /) -> Binary:
    """One bit a weight; a pruned weight stays zero."""
    matrix, kept = w.dense(), w.kept()
    weight = x.power.expand_as(matrix) if kept is None else x.power * kept
    scale = (matrix.abs() * weight).sum(1) / weight.sum(1).clamp(min=torch.finfo(torch.float32).tiny)
    return Binary.of(matrix >= 0, scale, kept)
