"""Channels divided among couplings by what their readers lose."""

import pytest
import torch
from torch import Tensor, nn

from lissom.compress import compress_model
from lissom.errors import DataError, RecipeError
from lissom.search.channels import allocate_channels, multiplications


def chain() -> tuple[nn.Module, Tensor]:
    """Two hidden layers of 20; all of the second is needed, of the first four would do."""
    model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 20)).eval()
    model[0].weight.data = model[0].weight.data[:4].repeat(5, 1)
    model[0].bias.data = model[0].bias.data[:4].repeat(5)
    model[2].weight.data *= 5
    return model, torch.randn(200, 6)


def test_more_is_removed_where_it_costs_less() -> None:
    model, x = chain()
    before = {name: p.clone() for name, p in model.named_parameters()}
    steps = allocate_channels(model, x, sparsity=0.4)
    assert [step.layers for step in steps] == ["0", "2"]
    first, second = (float(step.knobs["sparsity"]) for step in steps)
    assert first == pytest.approx(0.8)
    work = multiplications(model, x)
    sizes = [work["0"] + work["2"], work["2"] + work["4"]]
    assert (first * sizes[0] + second * sizes[1]) / sum(sizes) == pytest.approx(0.4)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    lost = []
    for recipe in (steps, [{"technique": "channels", "sparsity": 0.4}]):
        with torch.no_grad():
            lost.append(float((compress_model(model, x, steps=recipe)(x) - model(x)).square().mean()))
    assert lost[0] < 0.5 * lost[1]


def test_multiplications_are_those_of_the_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 5))
    assert multiplications(model, torch.randn(2, 3, 8, 8)) == {"0": 2 * 8 * 9 * 27, "3": 2 * 72 * 5}


def test_mistakes_say_what_to_do() -> None:
    model, x = chain()
    with pytest.raises(RecipeError, match=r"sparsity=0\.95 must be from 0 to 0\.9"):
        allocate_channels(model, x, sparsity=0.95)
    with pytest.raises(RecipeError, match="no channels of layers='4' can be taken away"):
        allocate_channels(model, x, layers="4")
    with pytest.raises(DataError, match="no examples"):
        allocate_channels(model, [])
