"""A language model as one function without a state: tokens, and keys and values go in, and come out with what is new.

A program has fixed shapes: keys and values have room for a fixed number of tokens, and what one program has written the
next one reads.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, StaticLayer


class Steps(nn.Module):
    """Logits of every next token, and the keys and values of each block, in turn."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, place: Tensor, cache: Sequence[Tensor]) -> list[Tensor]:
        """The tokens stand from `place` on; keys and values before that are in the cache."""
        layers = [kept(keys, values, place) for keys, values in zip(cache[::2], cache[1::2], strict=True)]
        out = self.model(input_ids=tokens, past_key_values=Cache(layers=layers), use_cache=True)
        return [out.logits, *(part for layer in layers for part in (layer.keys, layer.values))]


def kept(keys: Tensor, values: Tensor, place: Tensor) -> Any:
    """Keys and values of a block as transformers' models write and read them; what was given is left as it is.

    Where only the last tokens are seen, the mask hides the others.
    """
    layer: Any = StaticLayer(keys.shape[2])
    layer.keys, layer.values, layer.cumulative_length = keys.clone(), values.clone(), place.clone()
    layer.device, layer.dtype, layer.is_initialized = keys.device, keys.dtype, True
    return layer


def inputs_of(model: nn.Module, tokens: Tensor, room: int) -> dict[str, Any]:
    """What `Steps` takes for some first tokens, with room for so many; it is what the model itself makes of a token."""
    with torch.no_grad():
        held: Any = model(input_ids=tokens[:, :1], use_cache=True).past_key_values
    shaped = (part for layer in held.layers for part in (layer.keys, layer.values))
    cache = [part.new_zeros((part.shape[0], part.shape[1], room, part.shape[3])) for part in shaped]
    return {"tokens": tokens, "place": torch.zeros((), dtype=torch.long, device=tokens.device), "cache": cache}
