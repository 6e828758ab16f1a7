"""Attention of a ragged batch over pages: many sequences, of any length, in one forward pass.

The tokens of all sequences are packed one after another. First come the sequences that decode, one token each, which
attend together; then the chunks of prompts, each on its own.

Shapes: t packed tokens, d sequences that decode, p pages of the longest of them, n tokens of one sequence,
h query heads, k key-value heads, e features of a head.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lissom.engine.cache import Cache, Store
from lissom.engine.pages import PAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """The sequences that run one token: their pages, padded to the longest, and which slots hold their tokens."""

    table: Int[Tensor, "d p"]
    lengths: Int[Tensor, " d"]

    def mask(self, window: int | None) -> Bool[Tensor, "d 1 1 n"]:
        """What each may attend to: all its own tokens, or the last `window` of them."""
        slot = torch.arange(self.table.shape[1] * PAGE, device=self.table.device)
        seen = slot < self.lengths[:, None]
        if window is not None:
            seen &= slot >= self.lengths[:, None] - window
        return seen[:, None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive tokens of one prompt, the first at position `start`; `slots` hold all tokens up to the last."""

    start: int
    slots: Int[Tensor, " n"]

    @property
    def count(self) -> int:
        """Tokens of the chunk."""
        return len(self.slots) - self.start

    def mask(self, window: int | None) -> Bool[Tensor, "count n"]:
        """What each token may attend to: itself and those before it, or the last `window` of them."""
        at = torch.arange(len(self.slots), device=self.slots.device)
        distance = at[self.start :, None] - at
        seen = distance >= 0
        return seen if window is None else seen & (distance < window)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ragged:
    """Where the packed tokens of one forward pass belong. Masks are made once for all layers of equal window."""

    cache: Cache
    slots: Int[Tensor, " t"]
    decoding: Decoding | None
    chunks: tuple[Chunk, ...]
    masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def mask(self, part: int, of: Decoding | Chunk, window: int | None) -> Tensor:
        """The mask of one part of the batch, remembered."""
        if (part, window) not in self.masks:
            self.masks[part, window] = of.mask(window)
        return self.masks[part, window]


def attend(
    module: nn.Module,
    query: Float[Tensor, "1 h t e"],
    key: Float[Tensor, "1 k t e"],
    value: Float[Tensor, "1 k t e"],
    attention_mask: None,
    *,
    ragged: Ragged,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "1 t h e"], None]:
    """What a transformers decoder layer calls instead of its own attention (transformers, AttentionInterface)."""
    layer = module.layer_idx
    assert isinstance(layer, int)
    keys, values = ragged.cache.write(layer, ragged.slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
    rows = keys.turn(query[0].transpose(0, 1))
    parts, done = list[Tensor](), 0
    if ragged.decoding is not None:
        mask, done = ragged.mask(0, ragged.decoding, sliding_window), len(ragged.decoding.table)
        parts.append(_decode(rows[:done], keys, values, ragged.decoding, mask, scaling, softcap))
    for part, chunk in enumerate(ragged.chunks, start=1):
        mask = ragged.mask(part, chunk, sliding_window)
        parts.append(_prefill(rows[done : done + chunk.count], keys, values, chunk, mask, scaling, softcap))
        done += chunk.count
    return values.turn(torch.cat(parts))[None], None


def _decode(
    query: Float[Tensor, "d h e"],
    keys: Store,
    values: Store,
    decoding: Decoding,
    mask: Bool[Tensor, "d 1 1 n"],
    scaling: float,
    softcap: float | None,
) -> Float[Tensor, "d h e"]:
    """The query heads that share a key head are laid out as its rows, so no key is repeated."""
    d, h, e = query.shape
    key, value = (store.of_pages(decoding.table).transpose(1, 2) for store in (keys, values))
    heads = key.shape[1]
    out = _mix(query.view(d, heads, h // heads, e), key, value, mask, scaling, softcap)
    return out.reshape(d, h, -1)


def _prefill(
    query: Float[Tensor, "count h e"],
    keys: Store,
    values: Store,
    chunk: Chunk,
    mask: Bool[Tensor, "count n"],
    scaling: float,
    softcap: float | None,
) -> Float[Tensor, "count h e"]:
    key, value = (store.at(chunk.slots).transpose(0, 1)[None] for store in (keys, values))
    return _mix(query.transpose(0, 1)[None], key, value, mask, scaling, softcap)[0].transpose(0, 1)


def _mix(
    query: Float[Tensor, "d h q e"],
    key: Float[Tensor, "d k n e"],
    value: Float[Tensor, "d k n f"],
    mask: Bool[Tensor, "*m n"],
    scaling: float,
    softcap: float | None,
) -> Float[Tensor, "d h q f"]:
    """Attention by PyTorch, or by hand where scores are bent to stay within `softcap`, which that does not know."""
    each = query.shape[1] // key.shape[1]
    if softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=each > 1)
    key, value = (shared.repeat_interleave(each, 1) for shared in (key, value))
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * (scaling / softcap))
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value
