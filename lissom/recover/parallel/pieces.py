"""Pieces: which part of each tensor of the whole model a worker has, and the whole put together of all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from lissom.recover.parallel.workers import Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some places of a tensor of this shape, along one of its dims."""

    shape: tuple[int, ...]
    dim: int
    places: Tensor

    def of(self, whole: Tensor) -> Tensor:
        """What is here of a whole tensor."""
        return whole.index_select(self.dim, self.places.to(whole.device))

    def put(self, whole: Tensor, own: Tensor) -> None:
        """Put what is here where it belongs."""
        whole.index_copy_(self.dim, self.places.to(whole.device), own)


Pieces = Mapping[str, Piece]


def alike(whole: Tensor, p: Tensor) -> Tensor:
    """A tensor where another one of its shape is: in its shards, where that has such."""
    if isinstance(p, DTensor) and not isinstance(whole, DTensor):
        return distribute_tensor(whole.to(p.device).contiguous(), p.device_mesh, p.placements)
    return whole.to(p.device)


def exchanged(
    pieces: Pieces, names: Sequence[str], replica: int, workers: Workers
) -> list[tuple[dict[str, Piece], list[str], int]]:
    """The pieces of all workers, the names of the parameters that each has, and its replica."""
    heads = {name: [list(piece.shape), piece.dim] for name, piece in pieces.items()}
    told = workers.gathered(([heads, list(names), replica], {name: piece.places for name, piece in pieces.items()}))
    return [
        ({name: Piece(shape=tuple(shape), dim=dim, places=places[name]) for name, (shape, dim) in own.items()}, *rest)
        for (own, *rest), places in filter(None, told)
    ]


def assembled(parts: Sequence[Mapping[str, Tensor]], pieces: Sequence[Pieces]) -> dict[str, Tensor]:
    """The tensors of several workers, as one alone has them; one of the words that each is called by is a parameter."""
    found: dict[str, Tensor] = {}
    for tensors, own in zip(parts, pieces, strict=True):
        for words, tensor in tensors.items():
            piece = next((own[word] for word in words.split(" ") if word in own), None)
            if piece is None or not tensor.dim():  # a count of steps belongs to all
                found.setdefault(words, tensor)
            else:
                piece.put(found.setdefault(words, torch.zeros(piece.shape, dtype=tensor.dtype)), tensor)
    return found


def united(states: Sequence[Any]) -> Any:
    """Packed nests of several workers as one: a dict has what any of theirs has."""
    first = states[0]
    if not isinstance(first, dict) or "dict" not in first:
        return first
    found: dict[Any, list[Any]] = {}
    for state in states:
        for key, own in state["dict"]:
            found.setdefault(key, []).append(own)
    return {"dict": [[key, united(several)] for key, several in found.items()]}
