"""Norms: what they are told is what would have been measured of the layer's outputs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lissom.calibrate.norms import norms_behind
from lissom.compress import compress_model
from lissom.errors import RecipeError
from lissom.formats import Dense
from lissom.models import compressible
from lissom.statistics import Gram, Moments
from lissom.techniques.quantize.rtn import rtn
from lissom.techniques.quantize.xnor import xnor
from lissom.techniques.recover.norms import MOST, Norm, norms


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gram_of(x: Tensor) -> Gram:
    gram = Gram.zero(x.shape[1])
    gram.see(x)
    return gram


NORM = Norm(mean=drawn(0, 12), variance=drawn(1, 12).square() + 0.5)
INPUTS = drawn(2, 500, 32) @ drawn(3, 32, 32) + drawn(4, 32)


@given(st.integers(0, 20), st.sampled_from([2, 3, 4, 8]))
def test_they_move_as_the_outputs_do(seed: int, bits: int) -> None:
    """The oracle: mean and variance of all outputs, one by one, before and after."""
    weight = Dense(values=drawn(seed, 12, 32))
    rounded = rtn(weight, Moments.blank(32), bits=bits)
    before, after = INPUTS @ weight.dense().T, INPUTS @ rounded.dense().T
    told = norms(NORM, rounded, weight, gram_of(INPUTS))
    ratio = (after.var(0) / before.var(0)).clamp(1 / MOST, MOST)
    assert told.mean == pytest.approx(NORM.mean + after.mean(0) - before.mean(0), abs=2e-3)
    assert told.variance == pytest.approx(NORM.variance * ratio, rel=1e-3)


def test_where_nothing_has_moved_nothing_is_told() -> None:
    weight = Dense(values=drawn(0, 12, 32))
    told = norms(NORM, weight, weight, gram_of(INPUTS))
    assert told.mean.equal(NORM.mean)
    assert told.variance.equal(NORM.variance)


def test_an_output_of_which_nothing_is_left_is_not_made_loud() -> None:
    weight, silent = drawn(0, 12, 32), drawn(0, 12, 32)
    silent[3], weight[5] = 0, 0
    told = norms(NORM, Dense(values=silent), Dense(values=weight), gram_of(INPUTS))
    assert told.variance[3] == pytest.approx(NORM.variance[3] / MOST)
    assert told.variance[5] == pytest.approx(NORM.variance[5])  # it was silent before
    assert told.variance.isfinite().all()


def test_signs_of_inputs_are_refused() -> None:
    weight = Dense(values=drawn(0, 12, 32))
    with pytest.raises(RecipeError, match="leave this layer out"):
        norms(NORM, xnor(weight), weight, gram_of(INPUTS))


class Net(nn.Module):
    """Two convolutions with norms alone behind them, and a third whose channels are in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.second, self.two = nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)
        self.third, self.three = nn.Conv2d(16, 16, 3, groups=4), nn.BatchNorm2d(16)
        self.flat, self.four = nn.Linear(16, 8), nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.first(x)).relu()
        x = self.two(self.second(x)).relu()
        x = self.three(self.third(x)).relu()
        return self.out(self.four(self.flat(x.mean((2, 3)))))  # type: ignore[no-any-return]


IMAGES = drawn(5, 64, 3, 12, 12) + 0.3


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    for _ in range(200):
        model(IMAGES)
    return model.eval()


def test_which_norm_is_behind_which_layer(net: nn.Module) -> None:
    found = norms_behind(net, compressible(net), IMAGES[:2])
    assert found == {"first": "one", "second": "two", "flat": "four"}


def test_a_layer_that_runs_twice_has_no_norm_alone(net: nn.Module) -> None:
    twice = nn.Sequential(net.first, net.one, net.second, net.two, net.second, nn.Identity())
    assert set(norms_behind(twice, compressible(twice), IMAGES[:2]).values()) == {"1"}


class Added(Net):
    """Something is added to what a layer makes, in place, before the norm."""

    def forward(self, x: Tensor) -> Tensor:
        made = self.first(x)
        made += 1
        return self.one(made)  # type: ignore[no-any-return]


def test_what_is_added_to_in_place_is_no_output_of_the_layer_alone() -> None:
    added = Added().eval()
    assert norms_behind(added, compressible(added), IMAGES[:2]) == {}


def test_a_norm_that_is_named_twice_is_told_once(net: nn.Module) -> None:
    once = [{"technique": "rtn", "bits": 2}, {"technique": "norms"}]
    told, again = (
        compress_model(net, IMAGES, steps=steps) for steps in (once, [*once, {"technique": "norms", "layers": "first"}])
    )
    for name in ("one", "two", "four"):
        assert again.get_submodule(name).running_var.equal(told.get_submodule(name).running_var)


def outputs(model: nn.Module, name: str) -> Tensor:
    """What a part of a model makes of the images, a channel a row."""
    caught: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _, __, made: caught.append(made))
    with torch.no_grad():
        model(IMAGES)
    handle.remove()
    return caught[0].transpose(0, 1).flatten(1)


@pytest.mark.parametrize("step", [{"technique": "rtn", "bits": 2}, {"technique": "magnitude", "sparsity": 0.7}])
def test_a_recipe_tells_them(net: nn.Module, step: dict[str, object]) -> None:
    """Behind the first layer, whose inputs are the original's, the norm gives what it gave, in mean and spread.

    It has learned from these very images, all of them, so that its mean is theirs.
    """
    plain = compress_model(net, IMAGES, steps=[step])
    told = compress_model(net, IMAGES, steps=[step, {"technique": "norms"}])
    wanted, found, without = (outputs(model, "one") for model in (net, told, plain))
    assert found.std(1) == pytest.approx(wanted.std(1), rel=1e-3)
    assert found.mean(1) == pytest.approx(wanted.mean(1), abs=5e-3)
    assert without.std(1) != pytest.approx(wanted.std(1), rel=0.05)
    assert told.three.running_var.equal(net.three.running_var)
    for name, one in plain.named_parameters():
        assert one.equal(told.get_parameter(name))


def test_layers_whose_channels_have_gone_are_left(net: nn.Module) -> None:
    steps = [{"technique": "channels", "layers": "first", "sparsity": 0.5}, {"technique": "rtn", "bits": 4}]
    telling = [{"technique": "norms", "layers": layer} for layer in ("first", "second", "flat")]
    told = compress_model(net, IMAGES, steps=[*steps, *telling])
    plain = compress_model(net, IMAGES, steps=steps)
    for name, changed in (("one", False), ("two", False), ("four", True)):
        same = told.get_submodule(name).running_var.equal(plain.get_submodule(name).running_var)
        assert same is not changed
    assert told(IMAGES).isfinite().all()


def test_what_cannot_be_told(net: nn.Module) -> None:
    with pytest.raises(RecipeError, match="give data"):
        compress_model(net, steps=[{"technique": "norms"}])
    with pytest.raises(RecipeError, match="no batch norm alone is behind layers='third'"):
        compress_model(net, IMAGES, steps=[{"technique": "norms", "layers": "third"}])
    with pytest.raises(RecipeError, match=r"norms: .* of first"):
        compress_model(
            net, IMAGES, steps=[{"technique": "xnor", "layers": "first"}, {"technique": "norms", "layers": "first"}]
        )
