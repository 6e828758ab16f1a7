"""Norms: batch norms are told how far the mean and the spread of what they are given have moved.

What weights of few bits, or fewer weights, do to the outputs of a layer is in part the same for all inputs: an output
grows, or shrinks, or moves. A batch norm behind the layer subtracts and divides by what it remembers of these outputs,
so it makes that good if it remembers the right numbers, and nothing is slower for it. For an output with weights w that
became ŵ, of inputs with mean c and covariance C,

    μ ← μ + (ŵ - w) · c              σ² ← σ² · (ŵ C ŵᵀ) / (w C wᵀ)

so that what the norm gives has the spread that it had, and the mean that it had if that was β. The first is the bias
correction of Nagel et al., ICCV 2019, arXiv:1906.04721, section 4.2, with means that were measured. Where nothing has
moved the norm stays as it is; to estimate its statistics anew would make them those of the calibration data.

Shapes: o outputs, i inputs.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lissom.errors import RecipeError
from lissom.formats import Weight, Xnor
from lissom.statistics import Gram

MOST = 16.0  # times that a variance may grow, or shrink: an output of which nothing is left is not made loud


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Norm:
    """What a batch norm remembers of each of its inputs."""

    mean: Float[Tensor, " o"]
    variance: Float[Tensor, " o"]


def norms(norm: Norm, weight: Weight, original: Weight, gram: Gram, /) -> Norm:
    """What the norm behind a layer is to remember, whose weight was the original and has become another.

    Raises:
        RecipeError: the layer's inputs are signs only, which are not those that were seen.
    """
    if isinstance(weight, Xnor):
        raise RecipeError("the norm cannot be told what is not the product of the inputs; leave this layer out")
    covariance = gram.mean - gram.center.outer(gram.center)
    before, after = original.dense(), weight.dense()
    was, now = (((matrix @ covariance) * matrix).sum(1) for matrix in (before, after))
    grown = torch.where(was > 0, now / was, 1.0).clamp(1 / MOST, MOST)
    moved = (after - before) @ gram.center
    return Norm(mean=norm.mean + moved.to(norm.mean.dtype), variance=norm.variance * grown.to(norm.variance.dtype))
