"""Batch norms folded into convolutions: the same answers, and only where nothing else reads what comes between."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissom.compress import quantize_model
from lissom.engine.lower import lower
from lissom.formats import freeze


class Net(nn.Module):
    """A convolution and its norm; `twice` also reads what comes between, `stuck` cannot be traced."""

    def __init__(self, *, affine: bool = True, bias: bool = True, twice: bool = False, stuck: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 40, 3, bias=bias), nn.BatchNorm2d(40, affine=affine)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(40 * 6 * 6, 5))
        self.twice, self.stuck = twice, stuck

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.stuck and y.sum() > 1e9:
            return y
        z: Tensor = self.head(self.norm(y) + y if self.twice else self.norm(y))
        return z


def lowered(model: Net) -> tuple[Any, Tensor, Tensor]:
    """The model on kernels, and its answer beside that of a model whose norm runs on its own."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    for part in model.norm.state_dict().values():
        if part.is_floating_point():
            part.copy_(0.5 + torch.rand(40))
    made: Any = lower(freeze(quantize_model(model)).eval())
    alone: Any = lower(nn.Sequential(freeze(quantize_model(model)).conv))
    return made, made(x), made.head(model.norm(alone(x)) + (alone(x) if model.twice else 0))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_norm_is_folded_without_a_change(affine: bool, bias: bool) -> None:
    made, found, expected = lowered(Net(affine=affine, bias=bias).eval())
    assert type(made.norm) is nn.Identity
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("reason", ["twice", "stuck"])
def test_a_norm_that_cannot_be_folded_stays(reason: str) -> None:
    made, found, expected = lowered(Net(**{reason: True}).eval())
    assert type(made.norm) is nn.BatchNorm2d
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_norm_that_learns_stays() -> None:
    made: Any = lower(freeze(quantize_model(Net())).train())
    assert type(made.norm) is nn.BatchNorm2d
