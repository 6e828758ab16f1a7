"""YAQA: round so that the model's predictions change least, not the layer's output.

Tseng, Sun, Hou, De Sa, 2025, arXiv:2505.22988, sections 3 and 4: the curvature of the KL divergence to the original at
a layer's weights, as a Kronecker product, and rounding with feedback from both factors.

    KL ≈ ½ tr( G (W - V) H (W - V)ᵀ )        G = E[‖x‖² g gᵀ],  H = E[‖g‖² x xᵀ],  g = ∂ℓ/∂y of labels the model samples

The two factors are one step of the paper's power iteration (sketch B) from the identity. Grids as in GPTQ.

Shapes: o outputs, i inputs, d entries of an anti-diagonal.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lissom.formats import Affine, Weight
from lissom.statistics import Fisher, Guided
from lissom.techniques.knobs import at_least
from lissom.techniques.quantize.grid import fit, nearest
from lissom.techniques.wavefront import sweep_both


def yaqa(
    w: Weight,
    x: Guided,
    g: Fisher,
    /,
    *,
    bits: int = 4,
    group: int = 128,
    symmetric: bool = True,
    act_order: bool = True,
    damp: float = 0.01,
    damp_out: float = 0.1,
    clip: bool = True,
    scale_bits: int = 16,
) -> Affine:
    """Integers of `bits` bits; `group` inputs share a scale (0: a whole row does) of `scale_bits` bits, 16 or 8."""
    at_least(0, damp=damp, damp_out=damp_out)
    matrix, kept = w.dense(), w.kept()
    grid = fit(matrix, x.power, bits=bits, group=group, symmetric=symmetric, clip=clip, scale_bits=scale_bits)
    size = matrix.shape[1] // grid.scale.shape[1]

    def choose(value: Float[Tensor, " d"], r: Int[Tensor, " d"], c: Int[Tensor, " d"]) -> Float[Tensor, " d"]:
        scale, zero = grid.scale[r, c // size], grid.zero[r, c // size]
        chosen = (nearest(value, scale, zero, bits) - zero) * scale
        return chosen if kept is None else chosen * kept[r, c]

    rows, columns = (order(power, act_order) for power in (g.power, x.power))
    swept = sweep_both(matrix, x.mean, g.mean, choose, damp=damp, damp_out=damp_out, rows=rows, columns=columns)
    return Affine.of(grid.codes(swept), grid.scale, grid.stored_zero(), bits, kept, grid.step)


def order(power: Float[Tensor, " n"], falling: bool) -> Int[Tensor, " n"]:
    """Those that matter most first, or as they stand."""
    return power.argsort(descending=True, stable=True) if falling else torch.arange(len(power), device=power.device)
