"""Attention as the engine computes it over a cache of 8 bits, in PyTorch: what a model that is served so says.

The engine multiplies integers (heads.c). Each query, key and value of a head is rounded by itself, and so are the
weights of each 64 tokens, once the scales of their values are in them:

    x ≈ s q,  s = max|x| / 127        scores_t = s s_t (q · k_t)        out = Σ_blocks s_b Σ_t round(p_t s_t / s_b) v_t

Shapes: b sequences, h query heads, k key-value heads, q queries, n tokens, e features of a head.
"""

from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

KEYS = 64  # tokens whose weights are rounded together, as in the engine
LEAST = 1e-30  # what is smaller is taken for nothing
NAME = "lissom_int8"
Model = TypeVar("Model", bound=nn.Module)


def attend_in_8_bits(model: Model) -> Model:
    """Make a causal language model of transformers attend, from now on, as over a cache of 8 bits."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    config: Any = model.config
    config._attn_implementation = NAME
    return model


def attend(
    module: nn.Module,
    query: Float[Tensor, "b h q e"],
    key: Float[Tensor, "b k n e"],
    value: Float[Tensor, "b k n e"],
    attention_mask: Float[Tensor, "#b 1 q n"] | None,
    *,
    scaling: float,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "b q h e"], None]:
    """What a decoder layer of transformers calls in place of its own attention (transformers, AttentionInterface)."""
    each = query.shape[1] // key.shape[1]
    codes, scale = rounded(query.float())
    (keys, key_scale), (values, value_scale) = (
        [part.repeat_interleave(each, 1) for part in rounded(given.float())] for given in (key, value)
    )
    scores = codes @ keys.transpose(2, 3) * (scaling * scale * key_scale.transpose(2, 3))
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1) * value_scale.transpose(2, 3)
    blocks, factor = rounded(pad(weights, (0, -weights.shape[-1] % KEYS)).unflatten(-1, (-1, KEYS)))
    out = (blocks * factor).flatten(-2)[..., : weights.shape[-1]] @ values
    return out.transpose(1, 2).contiguous().to(query.dtype), None


def rounded(x: Float[Tensor, "*n e"]) -> tuple[Float[Tensor, "*n e"], Float[Tensor, "*n 1"]]:
    """Integers between -127 and 127, as floats, and the scale of each row."""
    most = x.abs().amax(-1, keepdim=True)
    some = most > LEAST
    return torch.where(some, x * (127 / most.clamp(min=LEAST)), 0).round(), torch.where(some, most / 127, 0)
