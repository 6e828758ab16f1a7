"""Choices of one form everywhere, of which the cache is no part."""

import pytest

from lissom.search.choosing import everywhere
from lissom.search.forms import CACHE, ORIGINAL, SAFE
from lissom.search.joint import Problem


def problem(cache: tuple[float, ...]) -> Problem:
    """A layer of three forms, a table of two, and a cache of such costs."""
    own = {"layer": (ORIGINAL, SAFE, "4 bits"), "table": (ORIGINAL, SAFE), CACHE: (ORIGINAL, SAFE)[: len(cache)]}
    costs = {"layer": (1.0, 0.5, 0.3), "table": (1.0, 0.5), CACHE: cache}
    return Problem(forms=own, costs=costs, kls=costs)


@pytest.mark.parametrize(
    ("cache", "held"),
    [((0.2, 0.1), SAFE), ((0.0, 0.1), ORIGINAL), ((0.0, 0.0), ORIGINAL), ((0.2,), ORIGINAL)],
    ids=["faster", "slower", "by size alone", "undone"],
)
def test_the_cache_is_held_as_is_cheapest(cache: tuple[float, ...], held: str) -> None:
    given = problem(cache)
    assert everywhere(given, "4 bits") == {"layer": "4 bits", "table": SAFE, CACHE: held}
    assert given.allows(everywhere(given, SAFE))
