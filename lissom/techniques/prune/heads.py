"""Heads: whole heads of attention go, and shapes shrink; query heads that share keys and values go with them.

Michel, Levy, Neubig, NeurIPS 2019, arXiv:1905.10650, found that most heads can go; Kurtić, Frantar, Alistarh, ZipLM,
NeurIPS 2023, arXiv:2302.04089, eq. (3) to (5), is how they are chosen here, and how the output projection is fitted
anew by least squares. See `shrink.py`.
"""

from lissom.coupling import Coupling
from lissom.statistics import Gram
from lissom.techniques.prune.shrink import shrink


def heads(
    c: Coupling, x: tuple[Gram, ...], /, *, sparsity: float = 0.25, damp: float = 0.001, repair: bool = True
) -> Coupling:
    """The fraction `sparsity` of the heads (of the groups that share keys and values) removed."""
    return shrink(c, x, sparsity=sparsity, multiple=1, damp=damp, repair=repair) if c.kind == "heads" else c
