"""torch.nn's attention with its projections as layers of their own; it keeps three matrices in one tensor.

In evaluation torch.nn's transformer layers read the matrices of all layers inside at once, which must be plain then.
They call this one instead.

Shapes: b batch, t queries, s keys, h hidden, n heads, d of a head.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lissom.models.layers import linear


class Attention(nn.Module):
    """Scaled dot products of heads, called as `torch.nn.MultiheadAttention` is."""

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        parts = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        whole = fused._parameters["in_proj_weight"]
        matrices = map(fused.get_parameter, parts) if whole is None else whole.chunk(3)
        biases = (None,) * 3 if fused.in_proj_bias is None else fused.in_proj_bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(linear, matrices, biases)
        self.out_proj = linear(fused.out_proj.weight, fused.out_proj.bias)
        self.embed_dim, self.num_heads, self.head_dim = fused.embed_dim, fused.num_heads, fused.head_dim
        self.dropout, self.batch_first = fused.dropout, fused.batch_first
        self.in_proj_bias = None  # by which torch.nn's transformer layers see that there is nothing to read at once
        self.train(fused.training)

    def forward(
        self,
        query: Float[Tensor, "*b_t _"],
        key: Float[Tensor, "*b_s _"],
        value: Float[Tensor, "*b_s _"],
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Float[Tensor, "*b_t h"], Float[Tensor, "*b_ns t s"] | None]:
        """What the queries find, and how much of each key is in it; masks are true, or -inf, where nothing is read.

        Without a batch, and batch first or second, as the attention that this was made of. `is_causal` says of
        `attn_mask` what it holds already.
        """
        q, k, v = (self.heads(made) for made in (self.q_proj(query), self.k_proj(key), self.v_proj(value)))
        mask = self.masked(attn_mask, key_padding_mask, q)
        weights = None
        if need_weights:
            scores = q @ k.mT * self.head_dim**-0.5
            weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, self.dropout, self.training)
            read = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            read = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        made = self.out_proj(self.joined(read, query.dim()))
        return made, weights if weights is None or query.dim() > 2 else weights.squeeze(0)

    def heads(self, x: Float[Tensor, "*b_t h"]) -> Float[Tensor, "b n t d"]:
        """The part of each head, of as many heads as there are."""
        x = x.unsqueeze(0) if x.dim() == 2 else x if self.batch_first else x.transpose(0, 1)
        split: Tensor = x.unflatten(-1, (-1, self.head_dim))
        return split.transpose(1, 2)

    def joined(self, x: Float[Tensor, "b n t d"], dims: int) -> Float[Tensor, "*b_t h"]:
        """The heads side by side, as the queries came."""
        x = x.transpose(1, 2).flatten(2)
        return x.squeeze(0) if dims == 2 else x if self.batch_first else x.transpose(0, 1)

    def masked(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Float[Tensor, "b n t d"]
    ) -> Float[Tensor, "#b #n #t s"] | None:
        """What is added to the scores; of queries and keys a mask is [t, s] or [b n, t, s], of keys [b, s] or [s]."""
        found = None
        if attn_mask is not None:
            found = added(attn_mask, q)
            found = found.expand(1, 1, -1, -1) if found.dim() == 2 else found.unflatten(0, (q.shape[0], -1))
        if key_padding_mask is not None:
            keys = added(key_padding_mask, q).reshape(q.shape[0], 1, 1, -1)
            found = keys if found is None else found + keys
        return found


def added(mask: Float[Tensor, "*s"] | Bool[Tensor, "*s"], q: Tensor) -> Float[Tensor, "*s"]:
    """A mask as what is added to scores."""
    if mask.is_floating_point():
        return mask.to(q.dtype)
    return torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -torch.inf)
