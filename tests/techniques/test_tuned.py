"""Tuning against its literal definition, and against deliberately wrong versions of itself."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lissom.errors import RecipeError
from lissom.formats import Dense, unfreeze, wrap
from lissom.statistics import Moments
from lissom.techniques.quantize.rtn import rtn
from lissom.techniques.quantize.tuned import LOSSES, Lots, mean_loss, tuned
from lissom.techniques.share.kmeans import kmeans

LR, STEPS = 0.01, 6


def layer(technique: Callable[..., object] = rtn) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    plain = nn.Linear(16, 8, bias=False)
    weight = technique(Dense(values=plain.weight.detach()), Moments.blank(16), bits=3)
    return unfreeze(nn.Sequential(wrap(plain, weight))), plain.weight.detach()  # type: ignore[arg-type]


def lots(model: nn.Module, original: Tensor, count: int = 3) -> Lots:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(20, 16, generator=generator) * torch.logspace(-1, 1, 16) for _ in range(count)]
    return [(lambda x=x: model(x), x @ original.T) for x in inputs]  # type: ignore[misc]


def oracle(sign: float = -1.0, falling: bool = True, graded: bool = True, relative: bool = True) -> Tensor:
    """Every step by hand, for a grid of one scale a row; the arguments make it deliberately wrong."""
    model, original = layer()
    data, grid = lots(model, original), model[0].matrix  # type: ignore[index]
    grid.near(original)  # type: ignore[union-attr, operator]
    points = grid.scale.abs()  # type: ignore[union-attr, operator]
    order = torch.cat([torch.randperm(3, generator=g) for g in [torch.Generator().manual_seed(0)] for _ in range(2)])
    for t, place in enumerate(order.tolist()):
        run, wanted = data[place]
        moved = {grid.latent: points if relative else torch.ones(()), grid.log_growth: torch.ones(())}  # type: ignore[union-attr]
        gradients = torch.autograd.grad((run() - wanted).square().mean(), list(moved))
        lr = LR * (1 - t / STEPS) if falling else LR
        with torch.no_grad():
            for (p, unit), gradient in zip(moved.items(), gradients, strict=True):
                p += sign * lr * unit * (gradient.sign() if graded else gradient)  # type: ignore[operator]
    return model[0].matrix().detach()  # type: ignore[index, operator]


def run(**knobs: float) -> Tensor:
    model, original = layer()
    model[0].matrix.near(original)  # type: ignore[index, union-attr, operator]
    tuned(model, lots(model, original), iterations=STEPS, lr=LR, **knobs)  # type: ignore[arg-type]
    return model[0].matrix().detach()  # type: ignore[index, operator]


def test_every_step_is_the_sign_of_the_gradient_times_the_distance_of_the_grid() -> None:
    torch.testing.assert_close(run(), oracle())


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"sign": 1.0}, id="uphill"),
        pytest.param({"falling": False}, id="steps that do not fall"),
        pytest.param({"graded": False}, id="the gradient in place of its sign"),
        pytest.param({"relative": False}, id="steps that do not know the grid"),
    ],
)
def test_wrong_versions_are_told_apart(wrong: dict[str, bool]) -> None:
    assert not torch.allclose(run(), oracle(**wrong), atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("technique", [rtn, kmeans])
def test_what_a_format_can_move_is_moved_until_the_output_is_closer(technique: Callable[..., object]) -> None:
    model, original = layer(technique)
    data = lots(model, original)
    before = mean_loss(data, nn.functional.mse_loss)
    model[0].matrix.near(original)  # type: ignore[index, union-attr, operator]
    tuned(model, data, iterations=60, lr=0.003)
    assert mean_loss(data, nn.functional.mse_loss) < 0.9 * before


def test_a_start_that_was_better_is_kept() -> None:
    model, original = layer()
    before = model[0].matrix().detach().clone()  # type: ignore[index, operator]
    tuned(model, lots(model, original), iterations=3, lr=50.0)
    assert torch.equal(model[0].matrix(), before)  # type: ignore[index, operator]


def test_nearness_changes_no_code_and_comes_as_close_as_it_may() -> None:
    for bits, symmetric in itertools.product((2, 4), (True, False)):
        original = torch.randn(8, 16, generator=torch.Generator().manual_seed(bits))
        other = rtn(Dense(values=original + 0.3), Moments.blank(16), bits=bits, symmetric=symmetric).trainable()
        before, far = other().detach().clone(), (other.latent - original).abs().sum()  # type: ignore[operator]
        other.near(original)
        assert torch.equal(other(), before)
        assert (other.latent - original).abs().sum() < far  # type: ignore[operator]


def test_the_divergence_of_predictions_can_be_the_loss() -> None:
    model, original = layer()
    data = lots(model, original)
    found = [float(mean_loss(data, LOSSES["kl"]))]
    model[0].matrix.near(original)  # type: ignore[index, union-attr, operator]
    tuned(model, data, iterations=60, lr=0.003, loss="kl")
    found.append(float(mean_loss(data, LOSSES["kl"])))
    assert found[1] < found[0]


def test_an_unknown_loss_is_named() -> None:
    model, original = layer()
    with pytest.raises(RecipeError, match="loss='l1' is not possible; choose mse or kl"):
        tuned(model, lots(model, original), loss="l1")


@pytest.mark.parametrize("knobs", [{"iterations": 0}, {"lr": -1.0}])
def test_steps_that_move_nothing_are_named(knobs: dict[str, float]) -> None:
    model, original = layer()
    with pytest.raises(RecipeError, match=r"iterations=0 must be 1 or more|lr=-1.0 must be more than 0"):
        tuned(model, lots(model, original), **knobs)  # type: ignore[arg-type]
