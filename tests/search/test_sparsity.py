"""Sparsities for every layer, from what the predictions hang on."""

import pytest
import torch
from torch import Tensor, nn

from lissom.compress import compress_model
from lissom.errors import RecipeError
from lissom.models import compressible, weight_of
from lissom.search.sparsity import allocate_sparsity


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4)).eval()
    with torch.no_grad():
        net[2].weight[12:] = 0  # half of it can go for nothing
    return net


@pytest.fixture
def data() -> Tensor:
    return torch.randn(200, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("technique", ["alps", "wanda"])
def test_the_whole_is_as_sparse_as_asked_and_what_is_free_goes_first(
    model: nn.Module, data: Tensor, technique: str
) -> None:
    steps = allocate_sparsity(model, data, sparsity=0.45, technique=technique)
    sizes = {name: layer.weight.numel() for name, layer in compressible(model).items()}  # type: ignore[union-attr]
    shares = {step.layers: float(step.knobs["sparsity"]) for step in steps}
    assert set(shares) == set(sizes)
    mean = sum(shares[name] * sizes[name] for name in sizes) / sum(sizes.values())
    assert mean == pytest.approx(0.45, abs=1e-9)
    if technique == "alps":  # wanda takes as much of each row
        assert shares["2"] == max(shares.values())


def test_its_steps_are_a_recipe(model: nn.Module, data: Tensor) -> None:
    compressed = compress_model(model, data, steps=allocate_sparsity(model, data, sparsity=0.5))
    kept = [weight_of(layer).kept() for layer in compressible(compressed).values()]
    removed = sum(int((~mask).sum()) for mask in kept if mask is not None)
    total = sum(mask.numel() for mask in kept if mask is not None)
    assert abs(removed - 0.5 * total) <= len(kept)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"technique": "rtn"}, "rtn has no knob 'sparsity'"),
        ({"sparsity": 1.0}, "sparsity=1.0 must be from 0 to 0.95"),
        ({"layers": "blocks.*"}, "names no layer of the model"),
    ],
)
def test_what_cannot_be_is_named(model: nn.Module, data: Tensor, knobs: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        allocate_sparsity(model, data, **knobs)  # type: ignore[arg-type]
