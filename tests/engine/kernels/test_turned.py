"""A turned input before a kernel: the butterflies are run, and the weight behind them is on its own kernel."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lissom.compress import compress_model
from lissom.engine.kernels.panels import PanelLinear
from lissom.engine.kernels.turned import TurnedLinear
from lissom.engine.lower import lower
from lissom.formats import CompressedLinear, freeze
from lissom.formats.turned import hadamard


def turned(*steps: dict[str, Any], bias: bool = True) -> Any:
    layer = nn.Sequential(nn.Linear(64, 32, bias=bias))
    return freeze(compress_model(layer, steps=[{"technique": "hadamard", "size": 32}, *steps])).eval()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rtn", "kind"), [({"bits": 8}, PanelLinear), ({"bits": 4, "group": 32}, PanelLinear)])
def test_the_turned_weight_goes_to_its_kernel(rtn: dict[str, Any], kind: type, bias: bool) -> None:
    model, x = turned({"technique": "rtn", **rtn}, bias=bias), torch.randn(5, 64)
    expected = copy.deepcopy(model)(x)
    lowered: Any = lower(model)
    assert type(lowered[0]) is TurnedLinear
    assert type(lowered[0].base) is kind
    torch.testing.assert_close(lowered(x), expected, rtol=0.02, atol=0.02)
    assert not torch.allclose(lowered[0].base(x), expected, rtol=0.1, atol=0.1)  # the turn forgotten


def test_what_no_kernel_takes_stays_as_it_is() -> None:
    model, x = turned(), torch.randn(5, 64)
    expected = model(x)
    lowered: Any = lower(model)
    assert type(lowered[0]) is CompressedLinear
    assert torch.equal(lowered(x), expected)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 32, 64])
def test_two_small_products_are_the_butterflies(size: int) -> None:
    x = torch.randn(2, 3, 64)
    torch.testing.assert_close(TurnedLinear(nn.Identity(), size)(x), hadamard(x, size), rtol=1e-5, atol=1e-5)
