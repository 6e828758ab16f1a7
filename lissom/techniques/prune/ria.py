"""RIA: keep the weights that are large for their row and for their column, and are listened to.

Zhang, Bai, Lin, Zhao, Hou, Cannistraci, ICLR 2024, "Plug-and-Play: An Efficient Post-training Pruning Method for Large
Language Models", section 3 (relative importance and activations).

    S_ij = (|W_ij| / Σ_k |W_kj|  +  |W_ij| / Σ_k |W_ik|) · ‖X_j‖₂^a        a = 1/2, compared within each output row

The sums are over what earlier steps kept. The permutation of channels that the paper adds for N:M is `permute`.

Shapes: o outputs, i inputs.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lissom.formats import Masked, Weight
from lissom.statistics import Moments
from lissom.techniques.knobs import at_least
from lissom.techniques.prune.select import keep_largest, unless_pruned


def ria(
    w: Weight,
    x: Moments,
    /,
    *,
    sparsity: float = 0.5,
    keep: int | None = None,
    of: int | None = None,
    power: float = 0.5,
) -> Masked:
    """Remove the fraction `sparsity` of each row, or keep `keep` of every `of` inputs; `power` is the paper's a."""
    at_least(0, power=power)
    matrix = w.dense()
    score = unless_pruned(relative_importance(matrix) * x.norm**power, w.kept())
    return Masked.of(matrix, keep_largest(score, sparsity, keep, of) & (score > -torch.inf))


def relative_importance(w: Float[Tensor, "o i"]) -> Float[Tensor, "o i"]:
    """Each weight's share of its column plus its share of its row; zero in one that is all zeros."""
    size = w.abs()
    tiny = torch.finfo(w.dtype).tiny
    return size / size.sum(0, keepdim=True).clamp(min=tiny) + size / size.sum(1, keepdim=True).clamp(min=tiny)
