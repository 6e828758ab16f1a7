"""AWQ: channels that carry much are quantized more finely, by being scaled up before and down again on the way.

Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan, Han, MLSys 2024, arXiv:2306.00978, eq. (4) and (5):

    s = s_X^α        α* = argmin over α in [0, 1) of  ‖ Q(W diag(s)) diag(s)⁻¹ X - W X ‖²

with s_X the root mean square of each channel (the paper: its mean magnitude), 20 steps of α, and the exact error of the
output from the Gram, summed over all readers: tr(D H Dᵀ), D = Q(W diag(s)) diag(s)⁻¹ - W. The scales are folded into
what makes the channels; the model says what it said until its weights are quantized, by a step with the same bits,
group and symmetric, which also searches the clipping range.

Shapes: c channels, o outputs and i inputs of a reader.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lissom.coupling import Coupling, Reader, wide
from lissom.statistics import Gram
from lissom.techniques.quantize.grid import fit

STEPS = 20


def awq(
    c: Coupling, x: Gram, /, *, bits: int = 4, group: int = 128, symmetric: bool = True, clip: bool = False
) -> Coupling:
    """Channels divided by the scales that suit integers of `bits` bits; `clip` searches ranges for every alpha."""
    h = x.mean
    strength = x.power.clamp(min=0).reshape(c.channels, -1).mean(1).sqrt()

    def error(s: Float[Tensor, " c"]) -> float:
        found = [rounding(r, s, x.power, bits=bits, group=group, symmetric=symmetric, clip=clip) for r in c.readers]
        return sum(float((d @ h).mul_(d).sum()) for d in found)

    return c.rescaled(min((scales(strength, step / STEPS) for step in range(STEPS)), key=error))


def scales(strength: Float[Tensor, " c"], alpha: float) -> Float[Tensor, " c"]:
    """s_X^α, centred on 1; a channel that was never driven stays as it is."""
    s = strength**alpha
    driven = s[strength > 0]
    if driven.numel() == 0:
        return torch.ones_like(s)
    return torch.where(strength > 0, s / (driven.max() * driven.min()).sqrt(), 1.0)


def rounding(
    r: Reader, s: Float[Tensor, " c"], power: Float[Tensor, " i"], *, bits: int, group: int, symmetric: bool, clip: bool
) -> Float[Tensor, "o i"]:
    """D, what rounding the scaled matrix changes in the matrix."""
    w, s = r.matrix.float(), wide(s, r.matrix.shape[1])
    grid = fit(w * s, power / s.square(), bits=bits, group=group, symmetric=symmetric, clip=clip)
    groups = grid.scale.shape[1]
    codes = grid.codes(w * s).float().unflatten(1, (groups, -1))
    rounded: Tensor = ((codes - grid.zero.unsqueeze(-1)) * grid.scale.unsqueeze(-1)).flatten(1)
    return rounded / s - w
