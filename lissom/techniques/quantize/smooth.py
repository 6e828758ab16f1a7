"""Smooth: what is hard to quantize moves from the activations, where it is large, to the weights.

Xiao, Lin, Seznec, Wu, Demouth, Han, SmoothQuant, ICML 2023, arXiv:2211.10438, eq. (4):

    Y = (X diag(s)⁻¹) (diag(s) Wᵀ)        s_j = max|X_j|^α / max|W_j|^(1-α)

The division is folded into what makes the channels; max|W_j| is taken over all layers that read them. It is worth
something before activations are quantized (`dynamic`); the model says what it said.

Shapes: c channels, i inputs of a reader.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lissom.coupling import Coupling
from lissom.statistics import Moments
from lissom.techniques.knobs import between


def smooth(c: Coupling, x: Moments, /, *, alpha: float = 0.5) -> Coupling:
    """Channels divided by s; alpha = 0 evens out the weights only, 1 the activations only."""
    between(0, 1, alpha=alpha)
    drive = by_channel(x.largest, c.channels)
    weight = torch.stack([by_channel(r.matrix.float().abs().amax(0), c.channels) for r in c.readers]).amax(0)
    s = drive**alpha / weight ** (1 - alpha)
    return c.rescaled(torch.where((drive > 0) & (weight > 0), s, 1.0))


def by_channel(size: Float[Tensor, " i"], channels: int) -> Float[Tensor, " c"]:
    """The largest of each channel's columns."""
    return size.reshape(channels, -1).amax(1)
