"""Width: channels of the residual stream of a language model go, in everything that writes to it and reads it.

Muralidharan et al., Minitron, NeurIPS 2024, arXiv:2407.14679, section 2.2, choose them by how strongly they are driven;
here they are chosen by the summed error of all that reads them, which is then fitted anew, as in `channels`. The norms
divide by the root mean square of fewer channels then, and their weights are scaled by what that is on the average. See
`shrink.py`.
"""

from lissom.coupling import Coupling
from lissom.statistics import Gram
from lissom.techniques.prune.shrink import shrink


def width(
    c: Coupling,
    x: tuple[Gram, ...],
    /,
    *,
    sparsity: float = 0.125,
    multiple: int = 1,
    damp: float = 0.001,
    repair: bool = True,
) -> Coupling:
    """The fraction `sparsity` of the stream's channels removed; `x` has the Gram of each reader."""
    if c.kind != "width":
        return c
    return shrink(c, x, sparsity=sparsity, multiple=multiple, damp=damp, repair=repair)
