"""A product of signs on its two kernels, beside the matrix that it stands for."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lissom.compress import compress_model
from lissom.engine.kernels.signs import SignsLinear, signs_layer
from lissom.engine.lower import lower
from lissom.formats import CompressedLinear, Signs, freeze


def product(*, bias: bool) -> Any:
    torch.manual_seed(0)
    steps = [{"technique": "nanoquant", "bits": 2.0, "iterations": 3}]
    return freeze(compress_model(nn.Sequential(nn.Linear(72, 40, bias=bias)), steps=steps)).eval()


@pytest.mark.parametrize("bias", [False, True])
def test_the_two_kernels_make_the_matrix(bias: bool) -> None:
    model = product(bias=bias)
    before = copy.deepcopy(model)
    assert isinstance(before[0].weight, Signs)
    lowered: Any = lower(model)
    assert type(lowered[0]) is SignsLinear
    left, right = lowered[0].left.matrix(), lowered[0].right.matrix() * lowered[0].columns
    torch.testing.assert_close(left @ right, before[0].weight.dense(), rtol=1e-4, atol=1e-5)
    x = torch.randn(2, 5, 72)
    found, expected = lowered(x), before(x)
    assert found.shape == expected.shape
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_other_formats_are_no_product() -> None:
    model: Any = freeze(compress_model(nn.Sequential(nn.Linear(32, 32)), steps=[{"technique": "rtn"}]))
    assert isinstance(model[0], CompressedLinear)
    assert signs_layer(model[0]) is None
