"""Two of four: what suits PyTorch's kernels for it, and, on a GPU that has them, what they say."""

import pytest
import torch
from torch import nn

from lissom.engine.kernels.sparse import SparseLinear, two_of_four
from lissom.engine.lower import fitting, lower
from lissom.formats import Dense, Masked, wrap


def pruned(o: int, i: int, keep: int, dtype: torch.dtype = torch.bfloat16) -> Masked:
    kept = torch.rand(o, i // 4, 4).argsort(-1).argsort(-1) < keep
    return Masked.of(torch.randn(o, i).to(dtype), kept.flatten(1))


def test_what_suits_the_kernels() -> None:
    assert two_of_four(pruned(32, 64, 2))
    assert two_of_four(pruned(64, 128, 1, torch.float16))
    assert not two_of_four(pruned(32, 64, 3))
    assert not two_of_four(pruned(32, 64, 2, torch.float32))
    assert not two_of_four(pruned(31, 64, 2))
    assert not two_of_four(pruned(32, 60, 2))
    assert not two_of_four(Dense(values=torch.zeros(32, 64).bfloat16()))
    straddling = torch.zeros(32, 64, dtype=torch.bool)
    straddling[:, 2:6] = True  # two of every four, and then not of every four in a row
    assert two_of_four(Masked.of(torch.randn(32, 64).bfloat16(), straddling))
    straddling[:, 1] = True
    assert not two_of_four(Masked.of(torch.randn(32, 64).bfloat16(), straddling))


def test_on_a_cpu_the_layer_is_another() -> None:
    assert not isinstance(fitting(wrap(nn.Linear(64, 32), pruned(32, 64, 2))), SparseLinear)  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_says_what_its_definition_says(rows: int, bias: bool) -> None:
    weight = pruned(256, 512, 2)
    layer = wrap(nn.Linear(512, 256, bias=bias).bfloat16(), weight).cuda()
    x = torch.randn(rows, 512, device="cuda").bfloat16()
    wanted = layer(x)
    lowered = lower(nn.Sequential(layer))[0]  # type: ignore[index]
    assert isinstance(lowered, SparseLinear)
    torch.testing.assert_close(lowered(x), wanted, rtol=2e-2, atol=0.1)
