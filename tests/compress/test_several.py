"""Layers that one step names and that are changed together."""

from typing import Any

import pytest
import torch
from torch import nn

from lissom.compress import compress_model
from lissom.errors import RecipeError
from lissom.formats import Sum, freeze

TIE = {"technique": "tie", "rank": 4, "base": 8, "group": 0}


def alike() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(32, 32) for _ in range(4)))


def bases(model: Any) -> list[int]:
    return [id(layer.matrix.base) for layer in model]


def test_the_layers_of_a_step_have_one_base() -> None:
    tied: Any = compress_model(alike(), torch.randn(200, 32), steps=[{"layers": "*", **TIE}])
    assert len(set(bases(tied))) == 1
    assert all(isinstance(layer.weight, Sum) for layer in tied)


def test_two_steps_make_two_bases() -> None:
    steps = [{"layers": "[01]", **TIE}, {"layers": "[23]", **TIE}]
    tied: Any = compress_model(alike(), torch.randn(200, 32), steps=steps)
    assert bases(tied)[0] == bases(tied)[1] != bases(tied)[2] == bases(tied)[3]


def test_what_the_data_says_makes_the_outputs_closer() -> None:
    model = alike()
    x = torch.randn(500, 32) @ torch.randn(32, 32) * torch.logspace(-1, 1, 32)
    outputs = [freeze(compress_model(model, data, steps=[{"layers": "*", **TIE}]))[0](x) for data in (None, x)]  # type: ignore[index]
    blind, seeing = ((y - model[0](x)).square().sum() for y in outputs)
    assert seeing < blind


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"layers": "0", **TIE}], "1 layers, of 32x32, share no matrix"),
        ([{"layers": "*", **TIE, "rounds": 0}], "rounds=0 must be 1 or more"),
    ],
)
def test_what_cannot_be_tied_is_named(steps: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        compress_model(alike(), torch.randn(50, 32), steps=steps)
