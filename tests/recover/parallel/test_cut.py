"""Cut: the best of all cuts, as trying every one finds it, and what a unit is measured to cost."""

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lissom.errors import ModelError
from lissom.recover.parallel.cut import COPIES, Cost, cut, measured
from lissom.recover.parallel.stages import chain_of

UNITS = st.lists(
    st.builds(Cost, seconds=st.integers(1, 9), handed=st.integers(0, 3), held=st.integers(0, 5)), min_size=1
)


def slowest(costs: list[Cost], ends: tuple[int, ...]) -> tuple[float, int]:
    stages = [costs[a:b] for a, b in pairwise(ends)]
    return max(sum(unit.seconds for unit in stage) for stage in stages), sum(stage[-1].handed for stage in stages[:-1])


@given(costs=UNITS, stages=st.integers(1, 4), room=st.integers(5, 40))
@settings(max_examples=200)
def test_no_cut_is_better(costs: list[Cost], stages: int, room: int) -> None:
    every = [(0, *inner, len(costs)) for inner in combinations(range(1, len(costs)), stages - 1)]
    fitting = [ends for ends in every if all(sum(unit.held for unit in costs[a:b]) <= room for a, b in pairwise(ends))]
    if not fitting:
        with pytest.raises(ModelError, match="too few for" if not every else "no cut into"):
            cut(costs, stages, room)
        return
    found = cut(costs, stages, room)
    assert slowest(costs, tuple(found)) == min(slowest(costs, ends) for ends in fitting)
    assert tuple(found) in fitting


def test_what_waits_counts() -> None:
    costs = [Cost(seconds=1, kept=10)] * 4
    assert cut(costs, 2, 40, parts=2) == [0, 2, 4]
    assert cut(costs, 2, 39, parts=2) == [0, 1, 4]  # two parts wait in the first of both
    with pytest.raises(ModelError, match="no cut into 2 stages fits"):
        cut(costs, 2, 29, parts=2)
    assert cut(costs, 2, 39, parts=1) == [0, 2, 4]


def test_units_are_measured() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 800), nn.Linear(800, 8))
    x = torch.randn(40, 8)
    costs = measured(chain_of(model, x), [x], lambda said: said.square().mean())
    assert [cost.handed for cost in costs] == [40 * 8 * 4, 40 * 800 * 4, 40 * 8 * 4]
    assert [cost.held for cost in costs] == [COPIES * 4 * n for n in (72, 7200, 6408)]
    assert costs[1].kept < costs[2].kept  # that reads what is wide
    assert all(cost.seconds > 0 for cost in costs)
    assert all(p.grad is None for p in model.parameters())
