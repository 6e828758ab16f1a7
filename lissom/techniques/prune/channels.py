"""Channels: whole channels go, of convolutions and of the hidden layers of networks, and shapes shrink.

Kurtić, Frantar, Alistarh, ZipLM, NeurIPS 2023, arXiv:2302.04089, eq. (3) to (5), for any layers that are coupled: the
channels that the layers which read them can best do without, by the exact error of the output, are removed one after
the other; then those layers are fitted anew by least squares. See `shrink.py`.
"""

from lissom.coupling import Coupling
from lissom.statistics import Gram
from lissom.techniques.prune.shrink import shrink


def channels(
    c: Coupling,
    x: tuple[Gram, ...],
    /,
    *,
    sparsity: float = 0.5,
    multiple: int = 1,
    damp: float = 0.001,
    repair: bool = True,
) -> Coupling:
    """The fraction `sparsity` of the channels removed; `x` has the Gram of each reader."""
    if c.kind != "channels":
        return c
    return shrink(c, x, sparsity=sparsity, multiple=multiple, damp=damp, repair=repair)
