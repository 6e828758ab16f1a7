"""Grids against the weights that they are read off."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lissom.export.grid import grid_of
from tests.export.conftest import FORMS, IN, OUT

GRIDS = [name for name in FORMS if name not in ("codebook", "pruned", "low rank")]


@pytest.mark.parametrize("form", GRIDS)
def test_codes_times_scales_are_the_matrix(weight: Callable[..., Any], form: str) -> None:
    given = weight(form)
    grid = grid_of(given)
    assert grid is not None
    assert torch.equal(grid.codes.float() * grid.scale.repeat_interleave(grid.group, 1), given.dense())
    assert grid.symmetric == ("zeros" not in form)
    lowest = grid.codes.unflatten(1, (-1, grid.group)).amin(2) + grid.zero
    highest = grid.codes.unflatten(1, (-1, grid.group)).amax(2) + grid.zero
    assert int(lowest.min()) >= 0
    assert int(highest.max()) < 2**grid.bits


@pytest.mark.parametrize("form", ["codebook", "pruned", "low rank"])
def test_what_lies_on_no_grid_has_none(weight: Callable[..., Any], form: str) -> None:
    assert grid_of(weight(form)) is None


def test_what_was_pruned_stays_0_where_no_code_is_0(weight: Callable[..., Any]) -> None:
    from lissom import compress_model
    from lissom.models.layers import weight_of

    steps = [{"technique": "magnitude", "sparsity": 0.5}, FORMS["2 bits, zeros"]]
    given = weight_of(
        compress_model(torch.nn.Sequential(torch.nn.Linear(IN, OUT)), torch.randn(64, IN), steps=steps)[0]
    )
    grid = grid_of(given)
    assert grid is not None
    assert int((grid.codes == 0).sum()) >= OUT * IN // 2
    assert torch.equal(grid.codes.float() * grid.scale.repeat_interleave(grid.group, 1), given.dense())


def test_scales_of_smaller_groups_are_those_of_the_larger(weight: Callable[..., Any]) -> None:
    grid = grid_of(weight("4 bits"))
    assert grid is not None
    found = grid.scale_of(32)
    assert found is not None
    assert torch.equal(found, grid.scale.repeat_interleave(2, 1))
    assert grid.scale_of(128) is None
    assert grid.scale_of(48) is None


def test_rows_and_room(weight: Callable[..., Any]) -> None:
    grid = grid_of(weight("4 bits, zeros"))
    assert grid is not None
    order = torch.randperm(OUT)
    larger = grid.rows(order).filled((OUT + 3, IN + 48))
    whole = larger.codes.float() * larger.scale.repeat_interleave(larger.group, 1)
    assert torch.equal(whole[:OUT, :IN], (grid.codes.float() * grid.scale.repeat_interleave(grid.group, 1))[order])
    assert not whole[OUT:].any()
    assert not whole[:, IN:].any()
