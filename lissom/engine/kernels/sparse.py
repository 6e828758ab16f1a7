"""A matrix of which at most two of four weights in a row were kept, on a GPU: by PyTorch's own kernels for that.

    y_o = Σ_{j kept in row o} w_oj x_j + b_o

Mishra et al., Accelerating Sparse Deep Neural Networks, 2021, arXiv:2104.08378: the units of GPUs from Ampere on skip
the other two. Only half of the weights are held, and two bits for each of them. For any other pattern, type or hardware
there is no such layer, and the matrix is written down to be multiplied with.

Shapes: o outputs, i inputs.
"""

import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lissom.formats import CompressedLayer, Masked, Weight

FOUR, KEPT = 4, 2
AMPERE = (8, 0)  # the capability of the first that have such units
LEAST = (32, 64)  # outputs and inputs, of which a matrix has a whole multiple: what all of PyTorch's kernels take


def sparse_layer(layer: CompressedLayer) -> "SparseLinear | None":
    """The layer on these kernels, or None where its weight does not suit them, or is not on a GPU that has them."""
    weight = layer.weight
    if weight.device.type != "cuda" or torch.cuda.get_device_capability(weight.device) < AMPERE:
        return None
    return SparseLinear(weight, layer.bias) if isinstance(weight, Masked) and two_of_four(weight) else None


def two_of_four(weight: Weight) -> bool:
    """Whether a pruned matrix has the pattern, the type and the size that the kernels take."""
    if not isinstance(weight, Masked) or weight.values.dtype not in (torch.float16, torch.bfloat16):
        return False
    if any(size % least for size, least in zip(weight.shape, LEAST, strict=True)):
        return False
    kept = weight.kept()
    assert kept is not None
    return bool((kept.unflatten(1, (-1, FOUR)).sum(2) <= KEPT).all())


class SparseLinear(nn.Module):
    """A linear layer of two weights in four."""

    def __init__(self, weight: Masked, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        with warnings.catch_warnings():  # that its interface may change
            warnings.simplefilter("ignore")
            self.weight = torch.sparse.to_sparse_semi_structured(weight.dense().to(weight.values.dtype))
        self.bias = None if bias is None else bias.detach().to(weight.values.dtype)

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ + b."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)
