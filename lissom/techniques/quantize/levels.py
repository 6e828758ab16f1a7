"""Weights on a few levels, signs or trits, times the scale of their group: V_ij = s_ig C_ij for j in group g.

In turns, as Li et al., ARB-LLM, ICLR 2025, arXiv:2410.03129, refine their binary weights under the Gram:
the levels by the column sweep, those columns not yet reached making good the error (where ARB takes the sign of what is
left of W), and the scales of each row by least squares,

    Σ_k ( C_g H_gk C_kᵀ ) s_k = w H_:g C_gᵀ        for every group g, C_g being the row's levels in it.

Shapes: o outputs, i inputs, g groups of a row.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lissom.formats.weight import stored
from lissom.statistics import Gram
from lissom.techniques.knobs import at_least
from lissom.techniques.sweep import sweep

RIDGE = 1e-4  # of the mean of the diagonal, towards the scales there are
TINY = torch.finfo(torch.float32).tiny

Nearest = Callable[[Tensor, Tensor], Tensor]  # (weights, their scales) -> their levels


def fitted(
    w: Float[Tensor, "o i"],
    x: Gram,
    nearest: Nearest,
    scale: Float[Tensor, "o g"],
    kept: Bool[Tensor, "o i"] | None,
    *,
    rounds: int,
    damp: float,
) -> tuple[Float[Tensor, "o i"], Float[Tensor, "o g"]]:
    """Levels, and scales as they will be stored; with 0 `rounds` each weight is on the level nearest to it."""
    at_least(0, rounds=rounds, damp=damp)
    size = w.shape[1] // scale.shape[1]
    scale = stored(scale).float()
    levels = nearest(w, scale.repeat_interleave(size, 1))
    levels = levels if kept is None else levels * kept
    for _ in range(rounds):
        levels = fed_back(w, x, nearest, scale.repeat_interleave(size, 1), kept, damp)
        scale = stored(rescale(w, levels, x.mean, scale)).float()
    return levels, scale


def fed_back(
    w: Float[Tensor, "o i"],
    x: Gram,
    nearest: Nearest,
    scale: Float[Tensor, "o i"],
    kept: Bool[Tensor, "o i"] | None,
    damp: float,
) -> Float[Tensor, "o i"]:
    """The levels that the sweep leads to, the columns of most power first."""
    order = x.power.argsort(descending=True, stable=True)
    places, levels = order.tolist(), torch.empty_like(w)

    def column(j: int, block: Float[Tensor, "k o"], u: Float[Tensor, " k"], place: int) -> Float[Tensor, " o"]:
        here = places[j]
        level = nearest(block[place], scale[:, here])
        levels[:, here] = level if kept is None else level * kept[:, here]
        return levels[:, here] * scale[:, here]

    sweep(w, x.xtx, column, damp=damp, order=order)
    return levels


def rescale(
    w: Float[Tensor, "o i"], levels: Float[Tensor, "o i"], h: Float[Tensor, "i i"], scale: Float[Tensor, "o g"]
) -> Float[Tensor, "o g"]:
    """The scales of least output error, never below zero; where a group is all zero, the one it had."""
    groups = scale.shape[1]
    parts = zip(levels.chunk(groups, 1), h.chunk(groups), strict=True)
    k = torch.stack([(c @ rows * levels).unflatten(1, (groups, -1)).sum(-1) for c, rows in parts], 1)
    right = (w @ h * levels).unflatten(1, (groups, -1)).sum(-1)
    ridge = (RIDGE * k.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)).clamp(min=TINY)
    found = torch.linalg.solve(k + torch.diag_embed(ridge.expand_as(scale)), right + ridge * scale)
    return torch.where(levels.unflatten(1, (groups, -1)).any(-1), found.clamp(min=0), scale)
