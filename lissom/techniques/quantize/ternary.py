"""Ternary: each weight is -α, 0 or α.

Li, Zhang, Liu, TWN, 2016, arXiv:1605.04711, eq. (2)-(4), with each input weighted by its power, h_j = E[x_j²]. Whatever
α is, a weight is best zero where |w_j| < α/2, so that the others are the k largest magnitudes for some k, and of those

    max over k of ( Σ_{j<=k} h_j |w_j| )² / Σ_{j<=k} h_j        α = Σ_{j<=k} h_j |w_j| / Σ_{j<=k} h_j

all are tried, by running sums over the sorted magnitudes, where the paper takes 0.7 · mean|w| for the threshold. Then
trits and scales are refined under the Gram, as `levels` says.

Shapes: o outputs, i inputs, g groups of a row, k inputs of a group.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lissom.formats import Ternary, Weight
from lissom.statistics import Gram
from lissom.techniques.quantize.grid import group_size
from lissom.techniques.quantize.levels import TINY, fitted


def ternary(w: Weight, x: Gram, /, *, group: int = 0, rounds: int = 2, damp: float = 0.01) -> Ternary:
    """Trits; `group` inputs share a scale (0: a whole row does). With 0 `rounds` each weight is rounded by itself."""
    matrix, kept = w.dense(), w.kept()
    size = group_size(group, matrix.shape[1])
    power = x.power.clamp(min=0).expand_as(matrix) if kept is None else x.power.clamp(min=0) * kept
    scale = best_scale(matrix.abs().unflatten(1, (-1, size)), power.unflatten(1, (-1, size)))
    trits, scale = fitted(matrix, x, nearest, scale, kept, rounds=rounds, damp=damp)
    return Ternary.of((trits + 1).to(torch.uint8), scale, kept)


def best_scale(magnitude: Float[Tensor, "o g k"], power: Float[Tensor, "o g k"]) -> Float[Tensor, "o g"]:
    """α of the best threshold of all."""
    ordered, order = magnitude.sort(-1, descending=True)
    counts = power.gather(-1, order).double()
    count, total = counts.cumsum(-1).clamp(min=TINY), (counts * ordered).cumsum(-1)
    best = (total.square() / count).argmax(-1, keepdim=True)
    return (total / count).gather(-1, best).squeeze(-1).float()


def nearest(w: Float[Tensor, "*n"], scale: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """-1, 0 or 1, whichever times the scale is the nearest."""
    return w.sign() * (w.abs() > scale / 2)
