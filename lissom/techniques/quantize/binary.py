"""Binary: each weight is its sign times one scale for the row, or for a group of its inputs.

Rastegari, Ordonez, Redmon, Farhadi, XNOR-Net, ECCV 2016, arXiv:1603.05279, eq. (4)-(6), with each input weighted by its
power, as in min over α, B of Σ_j E[x_j²] (w_j - α b_j)²:

    b_j = sign(w_j)        α = Σ_j E[x_j²] |w_j| / Σ_j E[x_j²]

Then signs and scales are refined under the Gram, as `levels` says.

Shapes: o outputs, i inputs, g groups of a row.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lissom.formats import Binary, Weight
from lissom.statistics import Gram
from lissom.techniques.quantize.grid import group_size
from lissom.techniques.quantize.levels import TINY, fitted


def binary(w: Weight, x: Gram, /, *, group: int = 0, rounds: int = 2, damp: float = 0.01) -> Binary:
    """One bit a weight; a pruned weight stays zero. With 0 `rounds` each weight keeps its own sign."""
    matrix, kept = w.dense(), w.kept()
    scale = mean_magnitude(matrix, x.power, kept, group_size(group, matrix.shape[1]))
    signs, scale = fitted(matrix, x, nearest, scale, kept, rounds=rounds, damp=damp)
    return Binary.of(signs >= 0, scale, kept)


def mean_magnitude(
    w: Float[Tensor, "o i"], power: Float[Tensor, " i"], kept: Bool[Tensor, "o i"] | None, size: int
) -> Float[Tensor, "o g"]:
    """α of each group: the mean magnitude, each weight counted by its input's power."""
    weight = power.clamp(min=0).expand_as(w) if kept is None else power.clamp(min=0) * kept
    total, count = ((t.unflatten(1, (-1, size)).sum(-1)) for t in (w.abs() * weight, weight))
    mean: Tensor = total / count.clamp(min=TINY)
    return mean


def nearest(w: Float[Tensor, "*n"], scale: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """1 or -1, whichever times the scale is the nearest."""
    return torch.where(w >= 0, 1.0, -1.0)
