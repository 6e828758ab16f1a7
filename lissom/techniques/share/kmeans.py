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

from lissom.formats import Palette, Weight
from lissom.formats.weight import stored
from lissom.statistics import Moments
from lissom.techniques.knobs import at_least, between


def kmeans(w: Weight, x: Moments, /, *, bits: int = 4, rows: int = 1, iterations: int = 30) -> Palette:
    """A codebook of 2^bits entries for each `rows` rows (0: one for the whole matrix)."""
    between(1, 8, bits=bits)
    at_least(0, rows=rows)
    at_least(1, iterations=iterations)
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
    ordered, order = values.sort(1)
    counts = weights.gather(1, order)
    fitted = [lloyd(ordered, counts, start, iterations) for start in starts(ordered, counts, entries)]
    errors = [(counts * (ordered - c.gather(1, assign(ordered, c))).square()).sum(1, keepdim=True) for c in fitted]
    return torch.where(errors[0] <= errors[1], fitted[0], fitted[1])


def starts(
    ordered: Float[Tensor, "p v"], weights: Float[Tensor, "p v"], entries: int
) -> tuple[Float[Tensor, "p e"], Float[Tensor, "p e"]]:
    """Equally spaced values, and the middles of equal shares of the weights; pruned weights do not count."""
    counted = weights > 0
    low = ordered.masked_fill(~counted, torch.inf).amin(1, keepdim=True).nan_to_num(posinf=0.0)
    high = ordered.masked_fill(~counted, -torch.inf).amax(1, keepdim=True).nan_to_num(neginf=0.0)
    middles = (torch.arange(entries, device=ordered.device) + 0.5) / entries
    rank = counted.cumsum(1)
    place = torch.searchsorted(rank, 1 + (middles * rank[:, -1:]).long()).clamp(max=ordered.shape[1] - 1)
    return low + (high - low) * middles, ordered.gather(1, place)


def lloyd(
    ordered: Float[Tensor, "p v"], weights: Float[Tensor, "p v"], codebook: Float[Tensor, "p e"], iterations: int
) -> Float[Tensor, "p e"]:
    """Assign to the nearest, move to the mean; an entry that nothing uses stays where it is.

    The values are sorted, so that an entry's share is a run of them: its sums are differences of running sums, and an
    iteration looks up the ends of runs instead of going through the values.
    """
    count = F.pad(weights.double().cumsum(1), (1, 0))
    total = F.pad((ordered.double() * weights).cumsum(1), (1, 0))
    for _ in range(iterations):
        ends = F.pad(torch.searchsorted(ordered, midpoints(codebook), right=False), (1, 0))
        ends = F.pad(ends, (0, 1), value=ordered.shape[1])
        share = count.gather(1, ends).diff(dim=1)
        mean = total.gather(1, ends).diff(dim=1) / share
        moved = torch.where(share > 0, mean.float(), codebook).sort(1).values
        if torch.equal(moved, codebook):
            break
        codebook = moved
    return codebook


def midpoints(codebook: Float[Tensor, "p e"]) -> Float[Tensor, "p m"]:
    """Where the nearest entry changes."""
    return ((codebook[:, 1:] + codebook[:, :-1]) / 2).contiguous()


def assign(values: Float[Tensor, "p v"], codebook: Float[Tensor, "p e"]) -> Int[Tensor, "p v"]:
    """The nearest entry of a sorted codebook: the number of midpoints below the value."""
    return torch.searchsorted(midpoints(codebook), values.contiguous())
