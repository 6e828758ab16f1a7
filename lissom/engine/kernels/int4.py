"""Weights of 4 bits and fewer in groups: bfloat16 activations times grouped int4 weights.

    y = bf16( Σ_g s_og Σ_{j in g} bf16(x_j) (q_oj - z_og) )        scales in bfloat16, the sum in float32

2- and 3-bit weights run as 4-bit ones, and pruned weights as the code that stands for zero. The kernel is PyTorch's own
for CPUs; it takes groups of 32, 64, 128 or 256 and outputs in sixteens. Its definition is `lissom::affine_linear`.

Shapes: o outputs, i inputs, g groups of a row.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lissom.formats import Affine, CompressedLinear

GROUPS = (256, 128, 64, 32)
MIDDLE = 8  # the code that the kernel takes for zero


def int4_layer(layer: CompressedLinear) -> "Int4Linear | None":
    """The layer on this kernel, or None where the weight does not suit it."""
    weight = layer.weight
    if not isinstance(weight, Affine) or weight.bits > 4 or weight.shape[0] % 16:
        return None
    group = next((size for size in GROUPS if weight.group % size == 0), None)
    return None if group is None else Int4Linear(weight, group, layer.bias)


class Int4Linear(nn.Module):
    """A linear layer on packed int4 weights; scales and zeros as the kernel wants them, (g, o, 2)."""

    packed: Tensor
    scales: Tensor

    def __init__(self, weight: Affine, group: int, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.group, self.bias = group, bias
        codes, scale, offset = recentred(weight, group)
        self.register_buffer("packed", torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1))
        self.register_buffer("scales", torch.stack([scale, offset], -1).transpose(0, 1).contiguous().bfloat16())

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ + b."""
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, self.group, self.scales)
        y = y.to(x.dtype).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def recentred(weight: Affine, group: int) -> tuple[Tensor, Float[Tensor, "o g"], Float[Tensor, "o g"]]:
    """Codes around 8, scales, and what to add to (code - 8) · scale so that the weight's own zero is zero."""
    repeat = weight.group // group
    zero = weight.zeros().repeat_interleave(repeat, 1)
    scale = weight.scale.float().repeat_interleave(repeat, 1)
    codes = weight.plane.codes().int()
    kept = weight.kept()
    if kept is not None:
        codes = torch.where(kept, codes, zero.int().repeat_interleave(group, 1))
    own = 2 ** (weight.bits - 1)  # narrower codes move to the middle: the kernel rounds (code - 8) · scale to bfloat16
    scale = scale.bfloat16().float()
    return codes + (MIDDLE - own), scale, (own - zero) * scale
