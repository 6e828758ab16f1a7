"""Pruning against its literal definitions."""

import pytest
import torch
from torch import Tensor

from lissom.errors import RecipeError
from lissom.formats import Dense
from lissom.statistics import Gram, Moments
from lissom.techniques.prune.magnitude import magnitude
from lissom.techniques.prune.sparsegpt import sparsegpt
from lissom.techniques.prune.wanda import wanda


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, 16, generator=generator) * torch.logspace(-1, 1, 16)
    x = x @ (torch.eye(16) + 0.3 * torch.randn(16, 16, generator=generator))
    return torch.randn(6, 16, generator=generator), x


def seen(kind: type, x: Tensor) -> object:
    statistic = kind.zero(x.shape[1])
    statistic.see(x)
    return statistic


def test_magnitude_removes_the_smallest_of_the_matrix(data: tuple[Tensor, Tensor]) -> None:
    w, _ = data
    kept = magnitude(Dense(values=w), sparsity=0.25).kept()
    threshold = sorted(w.abs().flatten().tolist())[24]  # 24 of 96 go
    assert kept is not None
    assert kept.tolist() == (w.abs() >= threshold).tolist()


def test_zeros_that_a_matrix_has_are_its_mask(data: tuple[Tensor, Tensor]) -> None:
    w, x = data
    w = w.where(w > -0.5, 0)
    masked = magnitude(Dense(values=w), sparsity=0)
    assert torch.equal(masked.kept(), w != 0)
    assert torch.equal(masked.dense(), w)
    swept = sparsegpt(masked, seen(Gram, x), sparsity=0)
    assert torch.equal(swept.kept(), w != 0)


def test_wanda_removes_the_least_listened_to_of_each_row(data: tuple[Tensor, Tensor]) -> None:
    w, x = data
    kept = wanda(Dense(values=w), seen(Moments, x), sparsity=0.5).kept()
    assert kept is not None
    for row in range(6):
        scores = [abs(w[row, j].item()) * x[:, j].square().sum().sqrt().item() for j in range(16)]
        best = sorted(range(16), key=lambda j, scores=scores: -scores[j])[:8]
        assert kept[row].nonzero().flatten().tolist() == sorted(best)


def test_a_pattern_keeps_so_many_of_every_group(data: tuple[Tensor, Tensor]) -> None:
    w, x = data
    for masked in (
        magnitude(Dense(values=w), keep=2, of=4),
        wanda(Dense(values=w), seen(Moments, x), keep=2, of=4),
        sparsegpt(Dense(values=w), seen(Gram, x), keep=2, of=4),
    ):
        kept = masked.kept()
        assert kept is not None
        assert (kept.reshape(6, 4, 4).sum(2) == 2).all()


def obs_oracle(w: Tensor, x: Tensor, keep: int, of: int, damp: float) -> Tensor:
    """SparseGPT with the inverse Hessian of the remaining columns recomputed at every column."""
    w, h = w.clone().double(), (x.T @ x / len(x)).double()
    h += damp * h.diagonal().mean() * torch.eye(len(h))
    mask = torch.ones_like(w, dtype=torch.bool)
    for j in range(w.shape[1]):
        left = torch.linalg.inv(h[j:, j:])  # of the columns not yet done
        if j % of == 0:
            # the sweep's U_kk², the remaining inverse's first entry when column k is reached
            power = torch.stack([torch.linalg.inv(h[k:, k:])[0, 0] for k in range(j, j + of)])
            score = w[:, j : j + of].square() / power
            mask[:, j : j + of] = False
            mask[:, j : j + of].scatter_(1, score.topk(keep, dim=1).indices, True)
        error = (w[:, j] * ~mask[:, j]) / left[0, 0]
        w[:, j:] -= torch.outer(error, left[0])
        w[:, j] *= mask[:, j]
    return w.float()


def test_sparsegpt_is_optimal_brain_surgery_column_by_column(data: tuple[Tensor, Tensor]) -> None:
    w, x = data
    result = sparsegpt(Dense(values=w), seen(Gram, x), keep=2, of=4, damp=0.01).dense()
    torch.testing.assert_close(result, obs_oracle(w, x, 2, 4, 0.01), atol=1e-4, rtol=1e-4)


def test_sparsegpt_makes_a_smaller_error_than_wanda(data: tuple[Tensor, Tensor]) -> None:
    w, x = data
    errors = [
        (x @ (w - masked.dense()).T).square().sum()
        for masked in (
            sparsegpt(Dense(values=w), seen(Gram, x), sparsity=0.5),
            wanda(Dense(values=w), seen(Moments, x), sparsity=0.5),
        )
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("knobs", [{"sparsity": 1.0}, {"keep": 2}, {"keep": 4, "of": 4}, {"keep": 2, "of": 5}])
def test_impossible_patterns_are_named(data: tuple[Tensor, Tensor], knobs: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=r"sparsity=1.0|keep=|of=5 does not divide 16 inputs"):
        magnitude(Dense(values=data[0]), **knobs)  # type: ignore[arg-type]
