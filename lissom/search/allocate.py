"""Choosing one of several options for each layer, so that all together fit a number of bytes at the least cost.

The multiple-choice knapsack, solved layer by layer over the choices that no other beats in both bytes and cost
(Nemhauser, Ullmann, Management Science 1969; Sinha, Zoltners, Operations Research 1979). It is exact as long as there
are at most `limit` such choices; beyond that the bytes are divided into so many stretches and the cheapest of each is
kept, with the bytes that it really has, so that the budget holds whatever happens.

Shapes: s choices so far, c options of a layer.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from lissom.errors import RecipeError
from lissom.estimate import Array

Whole: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]  # no NDArray: from numpy 2.5 on it is no class
Chosen = tuple[Int[Whole, " n"], Float[Array, " n"]]  # bytes, rising, and costs, falling


def choose(
    nbytes: Sequence[Sequence[int]], costs: Sequence[Sequence[float]], budget: int, *, limit: int = 20_000
) -> list[int]:
    """The option of each layer: of those that fit `budget` bytes together the ones of least total cost.

    Raises:
        RecipeError: the smallest options are too large already.
    """
    least = [min(options) for options in nbytes]
    if sum(least) > budget:
        raise RecipeError(f"budget: {budget:,} bytes are too few; the smallest options take {sum(least):,}")
    room = budget - sum(least)
    size, cost = np.zeros(1, dtype=np.int64), np.zeros(1)
    ways: list[tuple[Int[Whole, " s"], int]] = []  # where each choice came from, and of how many options it is one
    for options, prices, smallest in zip(nbytes, costs, least, strict=True):
        more = np.asarray(options, dtype=np.int64) - smallest
        place, (size, cost) = extended(size, cost, more, np.asarray(prices, dtype=float), room, limit)
        ways.append((place, len(options)))
    at, found = len(cost) - 1, list[int]()
    for place, count in reversed(ways):
        before, option = divmod(int(place[at]), count)
        found.append(option)
        at = before
    return found[::-1]


def extended(
    size: Int[Whole, " s"],
    cost: Float[Array, " s"],
    more: Int[Whole, " c"],
    price: Float[Array, " c"],
    room: int,
    limit: int,
) -> tuple[Int[Whole, " n"], Chosen]:
    """Every choice with every option of one more layer, without those that another beats, and where they came from."""
    sizes, totals = (size[:, None] + more).ravel(), (cost[:, None] + price).ravel()
    order = np.lexsort((totals, sizes))
    order = order[sizes[order] <= room]
    order = order[better(totals[order])]
    if len(order) > limit:
        stretch = sizes[order] * limit // (room + 1)
        last = np.append(stretch[1:] != stretch[:-1], True)  # costs fall: the last of a stretch is its cheapest
        order = order[last]
    return order, (sizes[order], totals[order])


def better(totals: Float[Array, " n"]) -> Int[Whole, " m"]:
    """Where a number is below all before it."""
    before = np.minimum.accumulate(np.concatenate([[np.inf], totals[:-1]]))
    return np.flatnonzero(totals < before)
