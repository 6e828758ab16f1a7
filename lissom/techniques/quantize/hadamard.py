"""Hadamard: the input of a layer is turned as it comes, so that no feature of it stands out, and its weight with it.

Ashkboos, Mohtashami, Croci, Li, Cameron, Jaggi, Alistarh, Hoefler, Hensman, QuaRot, NeurIPS 2024, arXiv:2404.00456,
section 4 (its R4, for what an activation function keeps from being turned beforehand); block by block as in Egiazarian
et al., MR-GPTQ, 2025, arXiv:2509.23202:

    x Wᵀ = (x H) (W H)ᵀ        H = diag(H_s, ..., H_s)

The layer says what it said. The steps that follow see W H, and statistics of x H; what they make of them is run so.
It pays where the inputs become integers of few bits (`dynamic`), and costs log₂ s additions for each feature.

Shapes: o outputs, i inputs, s the size of what is turned together.
"""

from lissom.errors import RecipeError
from lissom.formats import Dense, Turned, Weight
from lissom.formats.turned import hadamard as turn
from lissom.formats.turned import largest_size
from lissom.statistics import Gram, Moments, Statistic


def hadamard(w: Weight, /, *, size: int = 0) -> Turned:
    """Inputs turned `size` at a time, a power of two (0: the largest that divides how many there are)."""
    if not isinstance(w, Dense):
        raise RecipeError(
            f"{type(w).__name__.lower()} weights cannot be turned; put hadamard before what made them, once"
        )
    inputs = w.shape[1]
    size = size or largest_size(inputs)
    if size < 1 or size & (size - 1) or inputs % size:
        raise RecipeError(
            f"size={size} must be a power of two that divides the {inputs} inputs, such as {largest_size(inputs)}"
        )
    return Turned(base=Dense(values=turn(w.dense(), size).to(w.values.dtype)), size=size)


def turned_statistic(x: Statistic, size: int) -> Statistic:
    """What calibration remembers of x, as of x H.

    Moments do not say how features go together: they are taken to have nothing to do with each other, and the largest
    of a turned one is what it can be at most.
    """
    if isinstance(x, Gram):
        return type(x)(x.n, turn(turn(x.xtx, size).T, size), turn(x.sum, size))
    if isinstance(x, Moments):
        even = x.square.unflatten(0, (-1, size)).mean(1).repeat_interleave(size)
        most = x.largest.unflatten(0, (-1, size)).sum(1).repeat_interleave(size) * size**-0.5
        return Moments(x.n, turn(x.sum, size), even, most)
    return x  # of outputs, which are not turned
