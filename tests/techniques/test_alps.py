"""ALPS against the slow definition, its optimality, and wrong variants of it."""

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor

from lissom.errors import RecipeError
from lissom.formats import Dense, Masked
from lissom.statistics import Gram
from lissom.techniques.prune import alps as module
from lissom.techniques.prune.alps import alps
from lissom.techniques.prune.sparsegpt import sparsegpt

DAMP = 0.01


def problem(o: int = 5, i: int = 16, n: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(n, i, generator=generator) * torch.logspace(-1, 1, i)
    x = x @ (torch.eye(i) + 0.3 * torch.randn(i, i, generator=generator))
    return torch.randn(o, i, generator=generator), x


def gram(x: Tensor) -> Gram:
    statistic = Gram.zero(x.shape[1])
    statistic.see(x)
    return statistic


def damped(x: Tensor, damp: float = DAMP) -> Tensor:
    h = (x.T @ x / len(x)).double()
    return h + damp * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)


def error(w: Tensor, d: Tensor, h: Tensor) -> float:
    r = (w - d).double()
    return float(((r @ h) * r).sum())


def best_values(w: Tensor, kept: Tensor, h: Tensor) -> Tensor:
    """Least squares for each row on its kept weights, by the normal equations."""
    d = torch.zeros_like(w, dtype=torch.float64)
    for row in range(len(w)):
        s = kept[row].nonzero().flatten()
        d[row, s] = torch.linalg.solve(h[s][:, s], h[s] @ w[row].double())
    return d.float()


def admm_oracle(w: Tensor, x: Tensor, keep: int, of: int) -> Tensor:
    """Algorithm 1 with a matrix inverse for every ρ, then least squares on what was kept; N:M by loops."""
    h = damped(x)
    e = h.diagonal().sqrt()
    h, w = h / torch.outer(e, e), w.double() * e

    def project(z: Tensor) -> Tensor:
        out = torch.zeros_like(z)
        for row in range(len(z)):
            for g in range(0, z.shape[1], of):
                for j in sorted(range(g, g + of), key=lambda j, row=row: -abs(z[row, j]))[:keep]:
                    out[row, j] = z[row, j]
        return out

    d, v, rho, before = w, torch.zeros_like(w), 0.1, project(w) != 0
    for t in range(1, 301):
        near = (w @ h + rho * d - v) @ torch.linalg.inv(h + rho * torch.eye(len(h), dtype=torch.float64))
        d = project(near + v / rho)
        v = v + rho * (near - d)
        if t % 3 == 0:
            share = ((d != 0) ^ before).sum() / before.sum()
            if share == 0:
                break
            rho, before = rho * (1.3 if share > 0.1 else 1.2 if share > 0.005 else 1.1), d != 0
    return (best_values(w.float(), d != 0, h) / e).float()


def test_alps_is_its_algorithm() -> None:
    w, x = problem()
    result = alps(Dense(values=w), gram(x), keep=2, of=4, damp=DAMP)
    torch.testing.assert_close(result.dense(), admm_oracle(w, x, 2, 4), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("knobs", [{"sparsity": 0.5}, {"sparsity": 0.75}, {"keep": 2, "of": 4}])
def test_the_kept_values_are_the_least_squares_ones(knobs: dict[str, float]) -> None:
    w, x = problem()
    result = alps(Dense(values=w), gram(x), damp=DAMP, **knobs)  # type: ignore[arg-type]
    kept = result.kept()
    assert kept is not None
    torch.testing.assert_close(result.dense(), best_values(w, kept, damped(x)), atol=2e-3, rtol=2e-3)


def test_the_choice_is_nearly_the_best_of_all() -> None:
    w, x = problem(o=4, i=8)
    h = damped(x)
    result = alps(Dense(values=w), gram(x), keep=2, of=4, damp=DAMP).dense()
    pairs = list(combinations(range(4), 2))
    best = 0.0
    for row in range(4):
        masks = [torch.zeros(1, 8, dtype=torch.bool) for _ in range(len(pairs) ** 2)]
        for n, mask in enumerate(masks):
            first, second = divmod(n, len(pairs))
            mask[0, list(pairs[first])] = True
            mask[0, [4 + j for j in pairs[second]]] = True
        best += min(error(w[row : row + 1], best_values(w[row : row + 1], mask, h), h) for mask in masks)
    assert best <= error(w, result, h) * (1 + 1e-4)
    assert error(w, result, h) <= 1.25 * best


@pytest.mark.parametrize("knobs", [{"sparsity": 0.5}, {"keep": 2, "of": 4}])
def test_the_error_is_below_that_of_sparsegpt(knobs: dict[str, float]) -> None:
    w, x = problem(o=24, i=64, n=400)
    h = damped(x)
    ours, theirs = (
        error(w, technique(Dense(values=w), gram(x), **knobs).dense(), h)  # type: ignore[operator]
        for technique in (alps, sparsegpt)
    )
    assert ours <= 0.7 * theirs


def test_exactly_the_fraction_asked_is_removed_from_the_whole_matrix() -> None:
    w, x = problem()
    kept = alps(Dense(values=w), gram(x), sparsity=0.3).kept()
    assert kept is not None
    assert int((~kept).sum()) == 24  # of 80
    assert len(set(kept.sum(1).tolist())) > 1


def test_an_earlier_pattern_is_kept_and_its_values_made_good() -> None:
    w, x = problem()
    before = alps(Dense(values=w), gram(x), keep=2, of=4)
    moved = Masked.of(before.dense() * 1.5, before.kept())  # type: ignore[arg-type]
    again = alps(moved, gram(x), sparsity=0.6)
    kept, earlier = again.kept(), before.kept()
    assert kept is not None
    assert earlier is not None
    assert not kept[~earlier].any()
    assert int((~kept).sum()) == 48


@pytest.mark.parametrize(
    "h",
    [
        pytest.param(Gram.blank(16), id="blank"),
        pytest.param(gram(torch.zeros(10, 16)), id="nothing but zeros"),
        pytest.param(Gram.zero(16), id="nothing seen"),
    ],
)
def test_without_data_the_largest_stay_as_they_are(h: Gram) -> None:
    w, _ = problem()
    result = alps(Dense(values=w), h, sparsity=0.5)
    kept = w.abs() >= w.abs().flatten().sort().values[40]
    torch.testing.assert_close(result.dense(), w * kept, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("damp", [0.01, 0.0])
@pytest.mark.parametrize("samples", [3, 16])
def test_few_samples_and_dead_inputs_are_no_trouble(samples: int, damp: float) -> None:
    w, x = problem(n=samples)
    x[:, [2, 9]] = 0
    result = alps(Dense(values=w), gram(x), keep=2, of=4, damp=damp).dense()
    assert result.isfinite().all()
    assert result.abs().max() < 50 * w.abs().max()
    assert (x @ (w - result).T).square().sum() < 0.5 * (x @ w.T).square().sum()


def test_a_pattern_that_does_not_fit_is_named() -> None:
    w, x = problem()
    with pytest.raises(RecipeError, match="of=5 does not divide 16 inputs"):
        alps(Dense(values=w), gram(x), keep=2, of=5)


def _rolled(w: Tensor, x: Tensor) -> Tensor:
    skewed = gram(x)
    skewed.xtx = skewed.xtx.roll((1, 1), (0, 1))
    return alps(Dense(values=w), skewed, keep=2, of=4, damp=DAMP).dense()


def _patched(name: str, wrong: Callable[..., object]) -> Callable[[Tensor, Tensor], Tensor]:
    def run(w: Tensor, x: Tensor) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, wrong)
            return alps(Dense(values=w), gram(x), keep=2, of=4, damp=DAMP).dense()

    return run


def _undamped(h: Tensor, damp: float) -> tuple[Tensor, Tensor]:
    return SCALED(h, 0.0)


def _unscaled(h: Tensor, damp: float) -> tuple[Tensor, Tensor]:
    size, scaled = SCALED(h, damp)
    return torch.ones_like(size), scaled * size * size[:, None]


def _inverted(score: Tensor, *pattern: object) -> Tensor:
    return ~KEEP(score, *pattern)  # type: ignore[arg-type]


def _shifted(score: Tensor, *pattern: object) -> Tensor:
    return KEEP(score.roll(1, 1), *pattern).roll(-1, 1)  # type: ignore[arg-type]


def _not_solved(d: Tensor, target: Tensor, h: Tensor, kept: Tensor, iterations: int) -> Tensor:
    return target * kept


def _no_dual(target: Tensor, h: Tensor, largest: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    return target, largest(target)


SCALED, KEEP = module.scaled, module.keep_largest
MUTANTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "inputs of the Gram off by one": _rolled,
    "damping missing": _patched("scaled", _undamped),
    "scaling missing": _patched("scaled", _unscaled),
    "mask inverted": _patched("keep_largest", _inverted),
    "groups off by one": _patched("keep_largest", _shifted),
    "values not solved for": _patched("solve", _not_solved),
    "no iterations, the largest at once": _patched("admm", _no_dual),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_oracle_catches(mutant: str) -> None:
    w, x = problem()
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(MUTANTS[mutant](w, x), admm_oracle(w, x, 2, 4), atol=2e-3, rtol=2e-3)
