"""How sparsity is divided among layers."""

from itertools import product

import pytest
import torch
from torch import Tensor

from lissom.errors import RecipeError
from lissom.statistics import Moments
from lissom.techniques.prune.allocate import by_error, by_outliers, hull, outlier_ratio

AT = torch.tensor([0.0, 0.25, 0.5, 0.75])
SIZES = torch.tensor([100.0, 300.0, 200.0])


def curves(seed: int = 0) -> Tensor:
    """Convex rising curves."""
    steps = torch.rand(3, 3, generator=torch.Generator().manual_seed(seed)).sort(dim=1).values
    return torch.cat((torch.zeros(3, 1), steps.cumsum(1)), 1)


def mean(found: Tensor) -> float:
    return float((found * SIZES).sum() / SIZES.sum())


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.611, 0.75])
def test_the_whole_is_as_sparse_as_asked(sparsity: float) -> None:
    assert mean(by_error(curves(), AT, SIZES, sparsity)) == pytest.approx(sparsity, abs=1e-12)
    outliers = torch.tensor([0.01, 0.05, 0.002])
    assert mean(by_outliers(outliers, SIZES, sparsity)) == pytest.approx(sparsity, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_no_other_choice_of_points_has_a_smaller_error(seed: int) -> None:
    errors = curves(seed)
    for choice in product(range(4), repeat=3):
        sparsity = mean(AT[list(choice)])
        found = by_error(errors, AT, SIZES, sparsity).tolist()
        ours = 0.0
        for layer, s in enumerate(found):
            left = min(int(s / 0.25), 2)
            share = (s - float(AT[left])) / 0.25
            ours += float(errors[layer, left] + share * (errors[layer, left + 1] - errors[layer, left]))
        assert ours <= sum(float(errors[layer, p]) for layer, p in enumerate(choice)) + 1e-6


def test_a_layer_that_costs_more_is_pruned_less() -> None:
    found = by_error(torch.stack([AT**2, 10 * AT**2, AT**2]), AT, torch.ones(3), 0.5)
    assert found[1] < 0.5 < found[0]


def test_a_dent_in_a_curve_is_bridged() -> None:
    assert hull(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([0.0, 3.0, 2.0, 9.0])) == [0, 2, 3]
    errors = torch.tensor([[0.0, 3.0, 2.0, 9.0], [0.0, 1.5, 3.0, 9.0]])
    assert mean_of(by_error(errors, AT, torch.ones(2), 0.5)) == pytest.approx(0.5)


def mean_of(found: Tensor) -> float:
    return float(found.mean())


def test_more_outliers_less_sparsity_within_the_spread() -> None:
    found = by_outliers(torch.tensor([0.0, 0.02, 0.04]), torch.ones(3), 0.7, spread=0.08)
    assert found.tolist() == pytest.approx([0.78, 0.7, 0.62])
    assert by_outliers(torch.full((3,), 0.01), SIZES, 0.7).tolist() == pytest.approx([0.7] * 3)


@pytest.mark.parametrize("sparsity", [0.0, 0.01, 0.99])
def test_no_layer_is_removed_whole_nor_less_than_nothing(sparsity: float) -> None:
    found = by_outliers(torch.tensor([0.0, 0.02, 0.5]), SIZES, sparsity, spread=0.3)
    assert (found >= 0).all()
    assert (found < 1).all()


def test_outliers_are_counted_against_the_mean() -> None:
    w = torch.ones(4, 25)
    w[0, 0], w[1, 1] = 100.0, -100.0
    assert outlier_ratio(w, Moments.blank(25)) == pytest.approx(0.02)
    quiet = Moments.blank(25)
    quiet.square[0] = 0
    assert outlier_ratio(w, quiet) == pytest.approx(0.01)


def test_sparsities_out_of_reach_are_named() -> None:
    with pytest.raises(RecipeError, match=r"sparsity=0.9 must be from 0 to 0.75"):
        by_error(curves(), AT, SIZES, 0.9)
    with pytest.raises(RecipeError, match=r"sparsity=1.0 must be a fraction"):
        by_outliers(torch.ones(3), SIZES, 1.0)


def test_wrong_allocations_are_caught() -> None:
    """Unweighted by size, and by the error itself instead of its slope."""
    errors = torch.stack([AT**2, 2 * AT**2, 3 * AT**2])
    right = by_error(errors, AT, SIZES, 0.4)
    assert not torch.allclose(right, by_error(errors, AT, torch.ones(3), 0.4))
    assert not torch.allclose(right, by_error(errors.flip(0), AT, SIZES, 0.4))
