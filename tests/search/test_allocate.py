"""Choosing options within a budget: never over it, and the best there is."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissom.errors import RecipeError
from lissom.search.allocate import choose

Layers = list[list[tuple[int, float]]]
LAYERS = st.lists(
    st.lists(st.tuples(st.integers(0, 50), st.floats(0, 100, allow_nan=False)), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


def columns(layers: Layers) -> tuple[list[list[int]], list[list[float]]]:
    return [[size for size, _ in options] for options in layers], [[cost for _, cost in options] for options in layers]


def totals(layers: Layers, chosen: tuple[int, ...]) -> tuple[int, float]:
    picked = [options[k] for options, k in zip(layers, chosen, strict=True)]
    return sum(size for size, _ in picked), sum(cost for _, cost in picked)


@settings(max_examples=150)
@given(LAYERS, st.integers(0, 250))
def test_the_choice_is_the_best_that_fits(layers: Layers, budget: int) -> None:
    every = [totals(layers, chosen) for chosen in itertools.product(*(range(len(options)) for options in layers))]
    fitting = [cost for size, cost in every if size <= budget]
    if not fitting:
        with pytest.raises(RecipeError, match=f"budget: {budget} bytes are too few; the smallest options take"):
            choose(*columns(layers), budget)
        return
    size, cost = totals(layers, tuple(choose(*columns(layers), budget)))
    assert size <= budget
    assert cost == pytest.approx(min(fitting))


@settings(max_examples=80)
@given(LAYERS, st.integers(0, 250), st.integers(1, 5))
def test_a_coarse_choice_fits_all_the_same(layers: Layers, budget: int, limit: int) -> None:
    nbytes, costs = columns(layers)
    if sum(min(options) for options in nbytes) <= budget:
        size, _ = totals(layers, tuple(choose(nbytes, costs, budget, limit=limit)))
        assert size <= budget


def test_a_coarse_choice_is_nearly_the_best() -> None:
    """200 layers with sizes that have nothing in common, as many choices as no list can hold."""
    nbytes = [[1000 + 7 * n, 1500 + 11 * n, 2000 + 13 * n] for n in range(200)]
    costs = [[9.0 + n % 7, 4.0 + n % 3, 1.0] for n in range(200)]
    budget = sum(options[1] for options in nbytes)
    found = {limit: choose(nbytes, costs, budget, limit=limit) for limit in (300, 20_000)}
    total = {limit: sum(c[k] for c, k in zip(costs, chosen, strict=True)) for limit, chosen in found.items()}
    for chosen in found.values():
        assert sum(b[k] for b, k in zip(nbytes, chosen, strict=True)) <= budget
    assert total[20_000] <= total[300] <= 1.02 * total[20_000]
    assert total[20_000] < sum(options[1] for options in costs)


def test_more_bytes_never_cost_more() -> None:
    nbytes, costs = [[10, 20, 40]] * 6, [[5.0, 2.0 + n, 0.5] for n in range(6)]
    found = []
    for budget in range(60, 250, 10):
        chosen = choose(nbytes, costs, budget)
        found.append(sum(c[k] for c, k in zip(costs, chosen, strict=True)))
    assert found == sorted(found, reverse=True)
    assert choose([], [], 0) == []
