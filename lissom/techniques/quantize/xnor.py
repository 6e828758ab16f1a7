"""XNOR: weights and inputs of one bit each.

Rastegari, Ordonez, Redmon, Farhadi, XNOR-Net, ECCV 2016, arXiv:1603.05279, eq. (4)-(6):

    b_j = sign(w_j)        α = mean|w|

No statistic is asked for: once they are binary, all inputs are equally strong. Accuracy comes back in training only.

Shapes: o outputs, i inputs.
"""

from lissom.formats import Binary, Weight, Xnor
from lissom.statistics import Moments
from lissom.techniques.quantize.binary import mean_magnitude


def xnor(w: Weight, /) -> Xnor:
    """One bit a weight and one a bit of input; a pruned weight stays zero."""
    matrix, kept = w.dense(), w.kept()
    power = Moments.blank(matrix.shape[1], matrix.device).power
    scale = mean_magnitude(matrix, power, kept, matrix.shape[1])
    return Xnor(binary=Binary.of(matrix >= 0, scale, kept))
