"""GPTQ: round column by column and let the columns not yet reached make good the error.

Frantar, Ashkboos, Hoefler, Alistarh, ICLR 2023, arXiv:2210.17323, algorithm 1.

    v_j = Q(w_j)        e_j = (w_j - v_j) / U_jj        W_:,k -= e_j U_jk  for k > j

The grids are fitted before the sweep to the original weights (static groups), with a clipping search weighted by the
diagonal of the Gram. `act_order` sweeps the columns by falling diagonal; with static groups this costs nothing when the
model runs. A pruned weight stays zero, and its neighbours make up for that too.

Shapes: o outputs, i inputs.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lissom.formats import Affine, Weight
from lissom.statistics import Gram
from lissom.techniques.knobs import at_least
from lissom.techniques.quantize.grid import fit, nearest
from lissom.techniques.sweep import sweep


def gptq(
    w: Weight,
    x: Gram,
    /,
    *,
    bits: int = 4,
    group: int = 128,
    symmetric: bool = True,
    act_order: bool = True,
    damp: float = 0.01,
    clip: bool = True,
    scale_bits: int = 16,
    guided: bool = False,
) -> Affine:
    """Integers of `bits` bits; `group` inputs share a scale (0: a whole row does) of `scale_bits` bits, 16 or 8.

    `guided` asks for a Gram in which each example counts by how strongly the end loss hangs on it (GuidedQuant).
    """
    at_least(0, damp=damp)
    matrix, kept = w.dense(), w.kept()
    grid = fit(matrix, x.power, bits=bits, group=group, symmetric=symmetric, clip=clip, scale_bits=scale_bits)
    scale, zero = grid.scale.T.contiguous(), grid.zero.T.contiguous()
    size = matrix.shape[1] // grid.scale.shape[1]
    there = torch.arange(matrix.shape[1], device=matrix.device)
    order = x.power.argsort(descending=True, stable=True) if act_order else there
    places = order.tolist()

    def column(j: int, block: Float[Tensor, "k o"], u: Float[Tensor, " k"], place: int) -> Float[Tensor, " o"]:
        group_of = places[j] // size
        value = (nearest(block[place], scale[group_of], zero[group_of], bits) - zero[group_of]) * scale[group_of]
        return value if kept is None else value * kept[:, places[j]]

    swept = sweep(matrix, x.xtx, column, damp=damp, order=order)
    return Affine.of(grid.codes(swept), grid.scale, grid.stored_zero(), bits, kept, grid.step)
