"""Statistics collected while a model runs, against the literal ones of the inputs."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.calibrate import observe
from lissom.calibrate.observe import rows
from lissom.formats import Dense, matrix_of, wrap
from lissom.models import compressible
from lissom.statistics import Gram, Moments

BOTH = {Moments, Gram}


def look(model: nn.Module, *batches: Tensor, kinds: dict[str, set[Any]] | None = None) -> Any:
    layers = compressible(model)
    with observe(layers, kinds or dict.fromkeys(layers, BOTH)) as collected, torch.no_grad():
        for batch in batches:
            model(batch)
    return collected


def same(found: Any, x: Tensor) -> None:
    """The statistics are those of the rows x."""
    assert found[Moments].n == found[Gram].n == len(x)
    torch.testing.assert_close(found[Moments].sum, x.sum(0), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found[Moments].square, x.square().sum(0), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found[Moments].largest, x.abs().amax(0))
    torch.testing.assert_close(found[Gram].xtx, x.T @ x, rtol=1e-5, atol=1e-4)


def test_a_linear_layer_sees_its_input_over_all_batches() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    one, other = torch.randn(7, 2, 5), torch.randn(3, 2, 5)
    found = look(model, one, other)
    x = torch.cat([one, other]).reshape(-1, 5)
    same(found["0"], x)
    same(found["2"], model[1](model[0](x)).detach())


CONVOLUTIONS = {
    "plain": nn.Conv2d(3, 4, (3, 2), stride=(2, 1)),
    "padded": nn.Conv2d(3, 4, 3, padding=(1, 2), dilation=2),
    "same": nn.Conv2d(3, 4, (5, 3), padding="same"),
    "same, uneven": nn.Conv2d(3, 4, (4, 3), padding="same"),
    "valid": nn.Conv2d(3, 4, 2, padding="valid"),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_sees_its_patches(name: str, compressed: bool) -> None:
    layer: Any = CONVOLUTIONS[name]
    x = torch.randn(2, 3, 8, 7)
    padding: Any = layer.padding
    padded = x
    if layer.padding == "same":
        total = layer.kernel_size[0] - 1
        padded, padding = F.pad(x, [1, 1, total // 2, total - total // 2]), 0
    elif layer.padding == "valid":
        padding = 0
    patches = F.unfold(padded, layer.kernel_size, layer.dilation, padding, layer.stride)
    expected = patches.transpose(1, 2).flatten(0, 1)
    held = wrap(layer, Dense(values=matrix_of(layer))) if compressed else layer
    assert torch.equal(rows(held, x), expected)
    torch.testing.assert_close(expected @ matrix_of(layer).T + layer.bias, layer(x).movedim(1, -1).flatten(0, 2))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular"),
        nn.Conv1d(4, 6, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 6, 3, padding="same", padding_mode="replicate"),
        nn.Conv3d(4, 6, 2, padding=1, dilation=2),
    ],
    ids=str,
)
def test_patches_times_the_matrix_are_the_convolution(layer: Any) -> None:
    x = torch.randn(2, 4, *(6, 5, 7)[: len(layer.kernel_size)])
    expected = layer(x).movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(rows(layer, x) @ matrix_of(layer).T + layer.bias, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows(layer, x[0]), rows(layer, x[:1]))  # one example without a batch


def test_the_groups_of_a_convolution_each_give_rows() -> None:
    layer = nn.Conv2d(4, 6, 3, groups=2)
    x = torch.randn(3, 4, 5, 5)
    halves = [rows(nn.Conv2d(2, 3, 3), half) for half in x.chunk(2, 1)]
    assert rows(layer, x).shape == (3 * 2 * 9, 18)
    torch.testing.assert_close(rows(layer, x).T @ rows(layer, x), sum(half.T @ half for half in halves))


class Branches(nn.Module):
    """The same tensor goes into every branch; the branches add up."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([branch(x).mean() for branch in self.branches]).sum()


def test_layers_given_the_same_tensor_share_one_statistic() -> None:
    x, other = torch.randn(6, 5), torch.randn(4, 5)
    found = look(Branches(nn.Linear(5, 3), nn.Linear(5, 4), nn.Linear(5, 5)), x, other)
    assert found["branches.0"] is found["branches.1"] is found["branches.2"]
    same(found["branches.0"], torch.cat([x, other]))


def test_layers_that_need_other_statistics_do_not_share() -> None:
    kinds: dict[str, set[Any]] = {"branches.0": {Moments}, "branches.1": {Gram}}
    found = look(Branches(nn.Linear(5, 3), nn.Linear(5, 4)), torch.randn(6, 5), kinds=kinds)
    assert {name: set(kinds) for name, kinds in found.items()} == kinds


def test_convolutions_of_other_geometry_do_not_share() -> None:
    small, large, padded = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3, padding=1)
    x = torch.randn(2, 2, 6, 6)
    found = look(Branches(small, large, padded), x)
    for name, layer in (("branches.0", small), ("branches.1", large), ("branches.2", padded)):
        same(found[name], rows(layer, x))


def test_a_tensor_changed_in_between_is_another() -> None:
    class Rectified(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.one(x)
            return y.add_(self.other(x.relu_()))

    x = torch.randn(6, 5)
    found = look(Rectified(), x.clone())
    same(found["one"], x)
    same(found["other"], x.relu())


def test_a_layer_called_twice_sees_both_inputs() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    x = torch.randn(5, 4)
    found = look(model, x)
    same(found["0"], torch.cat([x, layer(x).tanh()]).detach())


def test_an_embedding_is_not_watched_and_hooks_are_gone_afterwards() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2))
    found = look(model, torch.tensor([[1, 2, 3]]))
    assert list(found) == ["1"]
    assert not any(module._forward_pre_hooks for module in model.modules())
