"""Keys and values of every layer, in pages: as they are, as bfloat16, in 8 bits, or in 4 bits and rotated.

    int8    one scale for each token and head:  v ≈ s q,  s = max|v| / 127
    int4    H v = low + s q,  low = min(H v),  s = (max(H v) - min(H v)) / 15

H is the Hadamard matrix of the head's features, over √e: it spreads the few large features that keys have over all of
them (Ashkboos et al., QuaRot, NeurIPS 2024, arXiv:2404.00456, section 4). It is its own inverse, so a query that is
turned too meets the same keys, (H q)·(H k) = q·k, and what comes of turned values is turned back. Scales are float16.

Shapes: t tokens, k key-value heads, e features of a head, d sequences, p pages of each, n tokens of one.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lissom.engine.pages import PAGE
from lissom.errors import DataError
from lissom.formats.turned import hadamard as turned
from lissom.formats.turned import largest_size

TINY = torch.finfo(torch.float16).tiny


class Store(ABC):
    """The keys, or the values, of one layer. It starts as zeros, since a masked NaN is still NaN."""

    def __init__(self, pages: int, like: Float[Tensor, "t k e"]) -> None:
        self.dtype, self.features = like.dtype, like.shape[2]
        self.tensors = tuple(part.new_zeros(pages * PAGE, *part.shape[1:]) for part in self.encoded(like))

    @abstractmethod
    def encoded(self, rows: Float[Tensor, "t k e"]) -> tuple[Tensor, ...]:
        """What is kept of tokens."""

    @abstractmethod
    def decoded(self, *parts: Tensor) -> Float[Tensor, "... k e"]:
        """The tokens again, turned if they were."""

    def turn(self, rows: Float[Tensor, "t h e"]) -> Float[Tensor, "t h e"]:
        """A query as these keys want it, or what came of these values, turned back."""
        return rows

    def write(self, slots: Int[Tensor, " t"], rows: Float[Tensor, "t k e"]) -> None:
        """Put each token into its slot."""
        for held, part in zip(self.tensors, self.encoded(rows), strict=True):
            held.index_copy_(0, slots, part)

    def at(self, slots: Int[Tensor, " n"]) -> Float[Tensor, "n k e"]:
        """The tokens in some slots."""
        return self.decoded(*(held.index_select(0, slots) for held in self.tensors))

    def of_pages(self, table: Int[Tensor, "d p"]) -> Float[Tensor, "d n k e"]:
        """The tokens of some sequences' pages; a page is copied at once, which indexing by a table does not do."""
        d, wanted = len(table), table.flatten()
        pages = (held.view(-1, PAGE, *held.shape[1:]).index_select(0, wanted) for held in self.tensors)
        return self.decoded(*(part.view(d, -1, *part.shape[2:]) for part in pages))


class FloatStore(Store):
    """As they are."""

    def encoded(self, rows: Float[Tensor, "t k e"]) -> tuple[Tensor, ...]:
        """The tokens themselves."""
        return (rows,)

    def decoded(self, *parts: Tensor) -> Float[Tensor, "... k e"]:
        """The tokens themselves."""
        return parts[0]


class BFloat16Store(FloatStore):
    """Rounded to bfloat16, as models that were trained in it hold them anyway."""

    def encoded(self, rows: Float[Tensor, "t k e"]) -> tuple[Tensor, ...]:
        """The tokens, rounded."""
        return (rows.bfloat16(),)

    def decoded(self, *parts: Tensor) -> Float[Tensor, "... k e"]:
        """The tokens again."""
        return parts[0].to(self.dtype)


class Int8Store(Store):
    """A byte for each feature, and a scale for each token and head."""

    def encoded(self, rows: Float[Tensor, "t k e"]) -> tuple[Tensor, ...]:
        """Codes and scales."""
        rows = rows.float()
        scale = (rows.abs().amax(-1, keepdim=True) / 127).clamp(min=TINY).half()
        return (rows / scale.float()).round().clamp(-127, 127).to(torch.int8), scale

    def decoded(self, *parts: Tensor) -> Float[Tensor, "... k e"]:
        """s q."""
        codes, scale = parts
        rows: Tensor = codes.float() * scale.float()
        return rows.to(self.dtype)


class Int4Store(Store):
    """Two features in a byte, turned; the least value and a scale for each token and head."""

    def turn(self, rows: Float[Tensor, "t h e"]) -> Float[Tensor, "t h e"]:
        """H x."""
        return hadamard(rows)

    def encoded(self, rows: Float[Tensor, "t k e"]) -> tuple[Tensor, ...]:
        """Codes two by two, and (low, s)."""
        rows = hadamard(rows.float())
        low = rows.amin(-1, keepdim=True).half()
        scale = ((rows.amax(-1, keepdim=True) - low.float()) / 15).clamp(min=TINY).half()
        codes = ((rows - low.float()) / scale.float()).round().clamp(0, 15).to(torch.uint8)
        return codes[..., ::2] | (codes[..., 1::2] << 4), torch.cat([low, scale], -1)

    def decoded(self, *parts: Tensor) -> Float[Tensor, "... k e"]:
        """low + s q, still turned."""
        pairs, grid = parts
        low, scale = grid.float().split(1, -1)
        codes = torch.stack([pairs & 15, pairs >> 4], -1).flatten(-2)
        rows: Tensor = low + codes.float() * scale
        return rows.to(self.dtype)


STORES: dict[str, type[Store]] = {
    "float": FloatStore,
    "bfloat16": BFloat16Store,
    "int8": Int8Store,
    "int4": Int4Store,
}
AUTO = "auto"


def kind_of_cache(given: str, config: Any) -> str:
    """The kind that is meant: "auto" is bfloat16 for a model whose weights are of that type, and float for others.

    Raises:
        DataError: a kind of cache that there is not.
    """
    if given not in (AUTO, *STORES):
        raise DataError(f"engine: cache={given!r} is no kind of cache; choose {', '.join([AUTO, *STORES])}")
    if given != AUTO:
        return given
    return "bfloat16" if getattr(config, "dtype", None) in (torch.bfloat16, "bfloat16") else "float"


def hadamard(x: Float[Tensor, "... e"]) -> Float[Tensor, "... e"]:
    """x H, in blocks of the largest power of two that divides e."""
    return turned(x, largest_size(x.shape[-1]))


class Cache:
    """Keys and values of every layer. A layer's stores are made when it first writes: layers may differ in shape.

    Raises:
        DataError: a kind of cache that does not suit the heads.
    """

    def __init__(self, pages: int, kind: str = "float") -> None:
        self._pages, self._kind = pages, STORES[kind]
        self._layers: dict[int, tuple[Store, Store]] = {}

    def write(
        self, layer: int, slots: Int[Tensor, " t"], key: Float[Tensor, "t k e"], value: Float[Tensor, "t k e"]
    ) -> tuple[Store, Store]:
        """Put each token's key and value into its slot; return the stores of the layer."""
        if layer not in self._layers:
            if self._kind is Int4Store and (key.shape[2] % 2 or value.shape[2] % 2):
                raise DataError(f"engine: cache='int4' needs heads of even width, not {key.shape[2]}; choose int8")
            self._layers[layer] = (self._kind(self._pages, key), self._kind(self._pages, value))
        keys, values = self._layers[layer]
        keys.write(slots, key)
        values.write(slots, value)
        return keys, values

    @property
    def nbytes(self) -> int:
        """Bytes of all pages of all layers that have written, scales counted."""
        return sum(part.nbytes for stores in self._layers.values() for store in stores for part in store.tensors)
