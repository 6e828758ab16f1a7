"""k-means: weights that share the values of a small codebook.

Han, Mao, Dally, Deep Compression, ICLR 2016, arXiv:1510.00149, section 3, with each weight counted by its input's power
(Kim et al., SqueezeLLM, ICML 2024, arXiv:2306.07629, eq. 3, with the Gram's diagonal for the Fisher information):

    min over c, a of Σ_ij E[x_j²] (W_ij - c_{a_ij})²

Lloyd's iterations from two starts, equally spaced values and equal shares of the weights; the better is kept for each
codebook.

Shapes: o outputs, i inputs, p codebooks, v weights of a codebook, e entries.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lissom.errors import RecipeError
from lissom.formats import Palette, Weight
from lissom.formats.weight import stored
from lissom.statistics import Moments


def kmeans(w: Weight, x: Moments, /, *, bits: int = 4, rows: int = 1, iterations: int = 30) -> Palette:
    """A codebook of 2^bits entries for each `rows` rows (0: one for the whole matrix)."""
    if not 1 <= bits <= 8 or rows < 0:
        raise RecipeError(f"bits={bits}, rows={rows} cannot be stored; choose 1 to 8 bits, and 0 rows or more")
    matrix, kept = w.dense(), w.kept()
    o, i = matrix.shape
    rows = min(rows or o, o)
    weight = x.power.clamp(min=0).expand_as(matrix) if kept is None else x.power.clamp(min=0) * kept
    values, weights = (F.pad(t, (0, 0, 0, -o % rows)).reshape(-1, rows * i) for t in (matrix, weight))
    codebook = stored(fit(values, weights, 2**bits, iterations)).float()
    indices = assign(values, codebook).reshape(-1, i)[:o].to(torch.uint8)
    return Palette.of(indices, codebook, rows, kept)


def fit(
    values: Float[Tensor, "p v"], weights: Float[Tensor, "p v"], entries: int, iterations: int
) -> Float[Tensor, "p e"]:
    """The sorted codebook of least weighted error that either start leads to."""
    fitted = [lloyd(values, weights, start, iterations) for start in starts(values, weights, entries)]
    errors = [(weights * (values - c.gather(1, assign(values, c))).square()).sum(1, keepdim=True) for c in fitted]
    return torch.where(errors[0] <= errors[1], fitted[0], fitted[1])


def starts(
    values: Float[Tensor, "p v"], weights: Float[Tensor, "p v"], entries: int
) -> tuple[Float[Tensor, "p e"], Float[Tensor, "p e"]]:
    """Equally spaced values, and the middles of equal shares of the weights; pruned weights do not count."""
    counted = weights > 0
    low = values.masked_fill(~counted, torch.inf).amin(1, keepdim=True).nan_to_num(posinf=0.0)
    high = values.masked_fill(~counted, -torch.inf).amax(1, keepdim=True).nan_to_num(neginf=0.0)
    middles = (torch.arange(entries) + 0.5) / entries
    ordered = values.masked_fill(~counted, torch.inf).sort(1).values
    place = (middles * counted.sum(1, keepdim=True)).long().clamp(max=values.shape[1] - 1)
    return low + (high - low) * middles, ordered.gather(1, place).nan_to_num(posinf=0.0)


def lloyd(
    values: Float[Tensor, "p v"], weights: Float[Tensor, "p v"], codebook: Float[Tensor, "p e"], iterations: int
) -> Float[Tensor, "p e"]:
    """Assign to the nearest, move to the mean; an entry that nothing uses stays where it is."""
    weighted = values * weights
    for _ in range(iterations):
        index = assign(values, codebook)
        total = torch.zeros_like(codebook).scatter_add_(1, index, weights)
        mean = torch.zeros_like(codebook).scatter_add_(1, index, weighted) / total
        moved = torch.where(total > 0, mean, codebook).sort(1).values
        if torch.equal(moved, codebook):
            break
        codebook = moved
    return codebook


def assign(values: Float[Tensor, "p v"], codebook: Float[Tensor, "p e"]) -> Int[Tensor, "p v"]:
    """The nearest entry of a sorted codebook: the number of midpoints below the value."""
    midpoints = (codebook[:, 1:] + codebook[:, :-1]) / 2
    return torch.searchsorted(midpoints.contiguous(), values.contiguous())
