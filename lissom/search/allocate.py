"""Choosing one of several options for each layer, so that all together fit a number of bytes at the least cost.

The multiple-choice knapsack, solved layer by layer over the choices that no other beats in both bytes and cost
(Nemhauser, Ullmann, Management Science 1969; Sinha, Zoltners, Operations Research 1979). It is exact as long as there
are at most `limit` such choices; beyond that the bytes are divided into so many stretches and the cheapest of each is
kept, with the bytes that it really has, so that the budget holds whatever happens.

Shapes: s choices so far, c options of a layer.
"""

from collections.abc import Callable, Sequence
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
    if sum(map(min, nbytes)) > budget:
        raise RecipeError(f"budget: {budget:,} bytes are too few; the smallest options take {sum(map(min, nbytes)):,}")
    _, _, chosen = solved(nbytes, costs, budget, limit)
    return chosen(-1)


def frontier(
    nbytes: Sequence[Sequence[int]], costs: Sequence[Sequence[float]], points: int, *, limit: int = 20_000
) -> list[list[int]]:
    """The options of each layer at so many places of the frontier, from least cost to fewest bytes.

    The places are those where the logarithm of the total cost is evenly divided, for cost is what a budget bounds.
    """
    _, cost, chosen = solved(nbytes, costs, sum(map(max, nbytes)), limit)
    logs = np.log(np.maximum(cost, cost[cost > 0].min() / 2 if (cost > 0).any() else 1.0))
    wanted = np.linspace(logs[-1], logs[0], points)
    places = sorted({int(np.abs(logs - at).argmin()) for at in wanted}, reverse=True)
    return [chosen(place) for place in places]


def solved(
    nbytes: Sequence[Sequence[int]], costs: Sequence[Sequence[float]], budget: int, limit: int
) -> tuple[Int[Whole, " n"], Float[Array, " n"], Callable[[int], list[int]]]:
    """Bytes and costs of all choices that no other beats, and which options each of them takes."""
    least = [min(options) for options in nbytes]
    room = budget - sum(least)
    size, cost = np.zeros(1, dtype=np.int64), np.zeros(1)
    ways: list[tuple[Int[Whole, " s"], int]] = []  # where each choice came from, and of how many options it is one
    for options, prices, smallest in zip(nbytes, costs, least, strict=True):
        more = np.asarray(options, dtype=np.int64) - smallest
        place, (size, cost) = extended(size, cost, more, np.asarray(prices, dtype=float), room, limit)
        ways.append((place, len(options)))

    def chosen(at: int) -> list[int]:
        at, found = at % len(cost), list[int]()
        for place, count in reversed(ways):
            before, option = divmod(int(place[at]), count)
            found.append(option)
            at = before
        return found[::-1]

    return size + sum(least), cost, chosen


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
