"""Rotate the stream: what flows past the blocks of a language model is turned by an orthogonal matrix, for good.

Ashkboos, Mohtashami, Croci, Li, Cameron, Jaggi, Alistarh, Hoefler, Hensman, QuaRot, NeurIPS 2024, arXiv:2404.00456,
section 4, stage 1a; Ashkboos, Croci, do Nascimento, Hoefler, Hensman, SliceGPT, ICLR 2024, arXiv:2401.15024, theorem 1.
A root mean square does not change when what it is of is turned, so that, once each norm's weights γ are in the layers
that read it,

    rms-norm(x) diag(γ) Wᵀ = rms-norm(x Q) (W diag(γ) Q)ᵀ        W -> W diag(γ) Q,  what makes x: M -> Qᵀ M

which costs nothing when the model runs. Q is as in `rotate`, of all channels of the stream. A head that was the
embedding becomes a matrix of its own, for the last norm's weights are in the one and not in the other: the model has
more bytes then.

Shapes: c channels.
"""

from dataclasses import replace

from lissom.coupling import Coupling
from lissom.techniques.quantize.rotate import rotate


def rotate_stream(c: Coupling, /, *, seed: int = 0) -> Coupling:
    """All channels of the stream rotated together."""
    if c.kind != "width":
        return c
    turned = rotate(replace(c, unit=c.channels, rotates=True), seed=seed)
    return replace(turned, unit=c.unit, rotates=c.rotates)
