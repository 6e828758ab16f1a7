"""Modules as chains, against PyTorch itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom import compress_model
from lissom.artifact import load, save
from lissom.errors import ModelError
from lissom.export.fpga.chain import chain, in_fixed_point
from lissom.export.fpga.fixed import Product


def compressed(model: nn.Module, *shape: int) -> nn.Module:
    """A model of eight bits whose batch norms have seen something."""
    model.train()
    for _ in range(3):
        model(torch.randn(16, *shape) * 2 + 1)
    return compress_model(model, steps=[{"technique": "rtn", "bits": 8}]).eval()


def small() -> nn.Module:
    """A convolution with all that may follow it."""
    first = [nn.Conv2d(2, 4, 3, padding=1, stride=(1, 2)), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.ReLU()]
    second = [nn.Conv2d(4, 3, (2, 1), bias=False), nn.AvgPool2d((3, 1), stride=1), nn.Dropout(), nn.Flatten()]
    return nn.Sequential(*first, nn.Sequential(*second), nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5))


class Functions(nn.Module):
    """The same as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Classes."""
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1).relu())


@pytest.mark.parametrize("made", [small, Functions])
def test_with_many_bits_it_says_what_the_module_says(made: type[nn.Module]) -> None:
    model = compressed(made(), 2, 8, 8)
    x = torch.randn(50, 2, 8, 8)
    network = in_fixed_point(chain(model), x, bits=16)
    with torch.no_grad():
        wanted = model(x).double().numpy()
    found = network.run(x.double().numpy())
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 0.004 * np.abs(wanted).max()
    coarse = in_fixed_point(chain(model), x, bits=6).run(x.double().numpy())
    assert 0.004 < np.abs(coarse - wanted).max() / np.abs(wanted).max() < 0.2


def test_codes_stay_what_they_are() -> None:
    model = compressed(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), 6)
    (layer,) = in_fixed_point(chain(model), torch.randn(9, 6), bits=8).stages
    assert isinstance(layer, Product)
    assert (layer.name, layer.rectified, layer.out.signed) == ("0", True, False)
    codes = model[0].weight.dense() / model[0].weight.scale.float()
    assert np.array_equal(layer.codes, codes.round().numpy())


class Joined(nn.Module):
    """A sum of two ways, which is no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """x + layer(x)."""
        return x + self.layer(x)


REFUSED = {
    "Sigmoid": nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()),
    "takes more than": Joined(),
    "with groups": nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)),
    "with dilation": nn.Sequential(nn.Conv2d(4, 4, 1, dilation=2)),
    "with padding": nn.Sequential(nn.Conv2d(4, 4, 1, padding="same")),
    "past the edge": nn.Sequential(nn.MaxPool2d(2, padding=1)),
    "several places": nn.Sequential(nn.AdaptiveAvgPool2d(2)),
    "must follow a linear layer": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4)),
    "no running statistics": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_built_is_named(why: str) -> None:
    with pytest.raises(ModelError, match=why):
        chain(REFUSED[why])


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch.export, about itself
def test_a_class_is_asked_for_where_there_is_only_its_graph(tmp_path: Path) -> None:
    save(compressed(Functions(), 2, 8, 8), tmp_path / "model", example=torch.randn(2, 2, 8, 8))
    with pytest.raises(ModelError, match="give model="):
        chain(load(tmp_path / "model"))
    assert len(chain(load(tmp_path / "model", model=Functions()))) == 5


def test_examples_of_another_shape_are_named() -> None:
    model = compressed(nn.Sequential(nn.Linear(6, 4)), 6)
    with pytest.raises(ModelError, match="does not take examples"):
        in_fixed_point(chain(model), torch.randn(9, 7), bits=8)
