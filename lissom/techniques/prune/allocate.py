"""How sparse each layer should be, so that the whole is as sparse as asked. Shapes: l layers, p points of a curve."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from lissom.errors import RecipeError
from lissom.statistics import Moments
from lissom.techniques.knobs import fraction


def by_error(
    errors: Float[Tensor, "l p"], at: Float[Tensor, " p"], sizes: Float[Tensor, " l"], sparsity: float
) -> Float[Tensor, " l"]:
    """The sparsities with the smallest sum of errors, given each layer's error at the sparsities `at` (rising).

    Between the points of a curve's lower convex hull the error is taken to be linear; then the least harmful stretches
    of all curves, by error for each weight removed, are taken first until enough is removed (Fox, 1966, Operations
    Research 14(2), 210-216: greedy is optimal for convex costs). The mean over weights is the sparsity asked.

    Raises:
        RecipeError: the sparsity is not among those of the curves.
    """
    at, sizes = at.double(), sizes.double()
    if not float(at[0]) <= sparsity <= float(at[-1]):
        raise RecipeError(f"sparsity={sparsity} must be from {float(at[0]):g} to {float(at[-1]):g}")
    stretches = []
    for layer, curve in enumerate(errors.double()):
        ends = hull(at, curve)
        for a, b in pairwise(ends):
            length = float(at[b] - at[a])
            cost = float(curve[b] - curve[a]) / (length * float(sizes[layer]))
            stretches.append((cost, layer, a, length))
    found = torch.full_like(sizes, float(at[0]))
    left = (sparsity - float(at[0])) * float(sizes.sum())
    for _, layer, _, length in sorted(stretches):
        taken = min(length, left / float(sizes[layer]))
        found[layer] += taken
        left -= taken * float(sizes[layer])
    return found


def hull(x: Float[Tensor, " p"], y: Float[Tensor, " p"]) -> list[int]:
    """The points of the lower convex hull of a curve, in order."""
    points: list[int] = []
    for k in range(len(x)):
        while len(points) > 1 and not turns_up(x, y, points[-2], points[-1], k):
            points.pop()
        points.append(k)
    return points


def turns_up(x: Float[Tensor, " p"], y: Float[Tensor, " p"], a: int, b: int, c: int) -> bool:
    """Whether the slope from b to c is above that from a to b."""
    return bool((y[c] - y[b]) * (x[b] - x[a]) > (y[b] - y[a]) * (x[c] - x[b]))


def by_outliers(
    ratios: Float[Tensor, " l"], sizes: Float[Tensor, " l"], sparsity: float, *, spread: float = 0.08
) -> Float[Tensor, " l"]:
    """OWL: the more outliers a layer has, the less of it is removed; `spread` is the most by which layers may differ
    from the middle, the paper's λ. The mean over weights is the sparsity asked.

    Yin et al., ICML 2024, arXiv:2310.05175, section 3.2.

    Raises:
        RecipeError: the sparsity is no fraction.
    """
    fraction(sparsity=sparsity)
    ratios, sizes = ratios.double(), sizes.double()
    width = (ratios.max() - ratios.min()).clamp(min=torch.finfo(ratios.dtype).tiny)
    low = (ratios.min() - ratios) / width * 2  # 0 for the fewest outliers, -2 for the most
    low = low - (low * sizes).sum() / sizes.sum()
    room = min(sparsity / float(-low.min()), (1 - sparsity) / float(low.max())) if low.any() else 0.0
    found: Tensor = sparsity + min(spread, 0.99 * room) * low  # 0.99: no layer is removed whole
    return found


def outlier_ratio(w: Float[Tensor, "o i"], x: Moments, *, above: float = 5.0) -> float:
    """The share of weights whose |W_ij| · ‖X_j‖₂ is more than `above` times the layer's mean; OWL's eq. (1)."""
    score = w.abs() * x.norm
    return float((score > above * score.mean()).float().mean())
