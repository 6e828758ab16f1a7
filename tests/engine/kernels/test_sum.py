"""A sum on its kernel: the base where it fits, the correction beside it, and nothing else of the layer changed."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lissom.compress import compress_model
from lissom.engine.kernels.panels import PanelLinear
from lissom.engine.kernels.sum import SumLinear, sum_layer
from lissom.engine.lower import lower
from lissom.formats import CompressedLinear, Dynamic, Sum, freeze, wrap


def corrected(rtn: dict[str, Any], *, bias: bool = True, bits: int = 8) -> Any:
    steps = [{"technique": "rtn", **rtn}, {"technique": "residual", "rank": 4, "bits": bits}]
    return freeze(compress_model(nn.Sequential(nn.Linear(64, 32, bias=bias)), steps=steps)).eval()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("rtn", "kind"), [({"bits": 8}, PanelLinear), ({"bits": 3, "group": 32}, PanelLinear)])
def test_the_base_goes_to_its_kernel_and_the_correction_beside_it(
    rtn: dict[str, Any], kind: type, bits: int, bias: bool
) -> None:
    model = corrected(rtn, bias=bias, bits=bits)
    before = copy.deepcopy(model)
    assert isinstance(before[0].weight, Sum)
    lowered: Any = lower(model)
    assert type(lowered[0]) is SumLinear
    assert type(lowered[0].base) is kind
    x = torch.randn(5, 64)
    expected = before(x)
    torch.testing.assert_close(lowered(x), expected, rtol=0.02, atol=0.02)
    left_out = lowered[0].base(x)  # had the correction been forgotten, this would show
    assert (lowered(x) - expected).abs().mean() < 0.3 * (left_out - expected).abs().mean() or rtn["bits"] == 8


def test_a_base_that_fits_no_kernel_leaves_the_layer_as_it_is() -> None:
    pruned = [{"technique": "magnitude"}, {"technique": "residual", "rank": 4}]
    lowered: Any = lower(freeze(compress_model(nn.Sequential(nn.Linear(64, 32)), steps=pruned)))
    assert type(lowered[0]) is CompressedLinear


def test_a_base_that_changes_its_input_is_not_run_beside_a_correction_that_does_not() -> None:
    model: Any = corrected({"bits": 8})
    weight = model[0].weight
    narrow = Sum(base=Dynamic(affine=weight.base, inputs=4), correction=weight.correction)
    layer = wrap(model[0], narrow)
    assert isinstance(layer, CompressedLinear)
    assert sum_layer(layer, lambda base: nn.Identity()) is None
    x = torch.randn(3, 64)
    expected = narrow.activate(x) @ narrow.dense().T + model[0].bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
