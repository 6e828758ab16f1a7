"""NanoQuant against its literal definitions, and against definitions that are wrong on purpose."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lissom.errors import RecipeError
from lissom.formats import Dense, Masked
from lissom.statistics import Gram
from lissom.techniques.quantize import nanoquant as file
from lissom.techniques.quantize.nanoquant import Copy, Factors, fit_scales, nanoquant, rank, split, start, turn_signs

O, I, R = 7, 10, 4  # noqa: E741  the letters of the shapes
ITERATIONS = 4


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    """W and a Gram H whose features go together."""
    generator = torch.Generator().manual_seed(8)
    mixed = torch.randn(60, I, generator=generator) @ (torch.eye(I) + 0.5 * torch.randn(I, I, generator=generator))
    return torch.randn(O, I, generator=generator), mixed.T @ mixed / 60


def error(found: Factors, w: Tensor, h: Tensor) -> float:
    gap = w - matrix(found)
    return float(((gap @ h) * gap).sum())


def matrix(found: Factors) -> Tensor:
    return found.s.diag() @ found.a @ found.m.diag() @ found.b @ found.t.diag()


def rank_one(magnitude: Tensor) -> Tensor:
    """The nearest matrix of rank one."""
    u, values, v = torch.linalg.svd(magnitude)
    return values[0] * torch.outer(u[:, 0], v[0])


def split_oracle(w: Tensor, h: Tensor, r: int, iterations: int) -> Tensor:
    """The method of multipliers with unscaled multipliers Λ = ρ Y, R's step solved as one system of r·i equations."""
    d = h.diagonal().sqrt()
    c, size = h / torch.outer(d, d), (w * d).square().mean().sqrt()
    target = w * d / size
    power, axes = torch.linalg.eigh(c)
    factors = list(start(target, power, axes, r))
    copies = [f.sign() * rank_one(f.abs()) for f in factors]
    multipliers = [torch.zeros_like(f) for f in factors]
    for n in range(iterations):
        rho = file.PENALTY[0] * (file.PENALTY[1] / file.PENALTY[0]) ** (n / (iterations - 1))
        g = factors[1] @ c @ factors[1].T
        first = rho * g.diagonal().mean()
        factors[0] = (target @ c @ factors[1].T + first * copies[0] - multipliers[0]) @ torch.linalg.inv(
            g + first * torch.eye(r)
        )
        copies[0] = copied(factors[0] + multipliers[0] / first)
        multipliers[0] += first * (factors[0] - copies[0])
        g = factors[0].T @ factors[0]
        second = rho * g.diagonal().mean()
        system = torch.kron(g, c) + second * torch.eye(r * len(h))
        right = factors[0].T @ target @ c + second * copies[1] - multipliers[1]
        factors[1] = torch.linalg.solve(system, right.flatten()).reshape(r, -1)
        copies[1] = copied(factors[1] + multipliers[1] / second)
        multipliers[1] += second * (factors[1] - copies[1])
    return copies[0] @ copies[1] * size / d


def copied(factor: Tensor) -> Tensor:
    return factor.sign() * rank_one(factor.abs())


def same_split(w: Tensor, h: Tensor) -> bool:
    found = matrix(split(w.double(), h.double(), R, ITERATIONS))
    return torch.allclose(found, split_oracle(w.double(), h.double(), R, ITERATIONS), rtol=0.02, atol=0.02)


@pytest.fixture
def wide() -> Any:
    """Arithmetic in float64, so that a sign does not fall the other way by rounding."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_the_factors_are_those_of_the_method_of_multipliers(wide: None, data: tuple[Tensor, Tensor]) -> None:
    assert same_split(*data)


def never_rescaled(self: Copy, penalty: float) -> Tensor:
    self.penalty = penalty
    return penalty * (self.signs * torch.outer(self.u, self.v) - self.missed)


def forgets(self: Copy, factor: Tensor) -> None:
    self.signs, self.u, self.v = file.storable(factor)


def one_magnitude(factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, k = factor.shape
    return factor.sign(), factor.abs().mean() * torch.ones(n), torch.ones(k)


WRONG: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "the Gram's diagonal only": (file, "split", lambda f: lambda w, h, *k: f(w, h.diagonal().diag(), *k)),
    "no Gram": (file, "split", lambda f: lambda w, h, *k: f(w, torch.eye(len(h)), *k)),
    "factors exchanged": (file, "split", lambda f: lambda w, h, *k: f(w.roll(1, 0), h, *k)),
    "multipliers not rescaled": (Copy, "pull", lambda f: never_rescaled),
    "multipliers forgotten": (Copy, "follow", lambda f: forgets),
    "one magnitude for all": (file, "storable", lambda f: one_magnitude),
    "penalty constant": (file, "PENALTY", lambda f: (f[1], f[1] * (1 + 1e-9))),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_definition_catches_what_is_wrong(
    wide: None, data: tuple[Tensor, Tensor], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, h = data
    expected = split_oracle(w.double(), h.double(), R, ITERATIONS)
    place, name, change = WRONG[wrong]
    monkeypatch.setattr(place, name, change(getattr(place, name)))
    found = matrix(file.split(w.double(), h.double(), R, ITERATIONS))
    assert not torch.allclose(found, expected, rtol=0.02, atol=0.02)


def test_it_starts_from_the_best_product_of_low_rank(data: tuple[Tensor, Tensor]) -> None:
    w, h = data
    power, axes = torch.linalg.eigh(h)
    for r in (R, I + 3):
        p, q = start(w, power, axes, r)
        assert p.shape == (O, r)
        root = torch.linalg.cholesky(h)
        lost = torch.linalg.svdvals(w @ root)[r:].square().sum()
        torch.testing.assert_close(((w - p @ q) @ root).square().sum(), lost, rtol=1e-3, atol=1e-4)


def some(generator: torch.Generator) -> Factors:
    a, b = (torch.randn(n, k, generator=generator).sign() for n, k in ((O, R), (R, I)))
    s, m, t = (0.5 + torch.rand(n, generator=generator) for n in (O, R, I))
    return Factors(a=a, b=b, s=s, m=m, t=t)


def test_each_scale_is_the_least_squares_one(data: tuple[Tensor, Tensor]) -> None:
    """Against a system with a row for every entry of the output, scale after scale."""
    w, h = data
    found = some(torch.Generator().manual_seed(2))
    a, b, m, t = found.a, found.b, found.m, found.t
    root = torch.linalg.cholesky(h)
    fit_scales(found, w, h)
    for row in range(O):
        said = (a[row] * m) @ (b * t) @ root
        torch.testing.assert_close(found.s[row], said @ (w[row] @ root) / said.square().sum(), rtol=1e-3, atol=1e-4)
    columns = [(torch.outer(found.s * a[:, k], b[k] * t) @ root).flatten() for k in range(R)]
    expected = torch.linalg.lstsq(torch.stack(columns, 1), (w @ root).flatten()).solution
    torch.testing.assert_close(found.m, expected, rtol=1e-2, atol=1e-3)
    product = found.s.unsqueeze(1) * a * found.m @ b
    columns = [torch.outer(product[:, j], root[j]).flatten() for j in range(I)]
    expected = torch.linalg.lstsq(torch.stack(columns, 1), (w @ root).flatten()).solution
    torch.testing.assert_close(found.t, expected, rtol=1e-2, atol=1e-3)


def test_each_sign_is_the_better_one_given_the_others(data: tuple[Tensor, Tensor]) -> None:
    w, h = data
    found, tried = (some(torch.Generator().manual_seed(3)) for _ in range(2))
    turn_signs(found, w, h)
    for k, row in itertools.product(range(R), range(O)):
        errors = []
        for sign in (1.0, -1.0):
            tried.a[row, k] = sign
            errors.append(error(tried, w, h))
        tried.a[row, k] = 1.0 if errors[0] <= errors[1] else -1.0
    assert torch.equal(found.a, tried.a)


@pytest.mark.parametrize("size", [1e-7, 1.0, 1e4])
@pytest.mark.parametrize("bits", [0.8, 1.0, 2.5])
@pytest.mark.parametrize("shape", [(64, 96), (33, 70), (96, 32)])
def test_the_bits_are_those_asked_for_and_no_more(shape: tuple[int, int], bits: float, size: float) -> None:
    w = torch.randn(shape) * size * torch.logspace(-1, 1, shape[0]).unsqueeze(1)
    w[3] = 0
    found = nanoquant(Dense(values=w), Gram.blank(shape[1]), bits=bits, iterations=3)
    assert (found.dense() - w).square().sum() < 0.9 * w.square().sum()
    assert (found.dense()[3] == 0).all()
    assert found.bits_per_weight <= bits
    one_more = found.nbytes + sum(-(-n // 32) * 4 for n in shape) + 2
    assert 8 * one_more / (shape[0] * shape[1]) > bits
    assert found.rank == rank(*shape, bits)


def test_more_bits_leave_less_error_and_the_gram_helps() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(300, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    w, seen = torch.randn(48, 64, generator=generator), Gram.zero(64)
    seen.see(x)

    def lost(gram: Gram, bits: float) -> float:
        found = nanoquant(Dense(values=w), gram, bits=bits, iterations=60)
        return float(((w - found.dense()) @ x.T).square().sum() / (w @ x.T).square().sum())

    assert lost(seen, 2.5) < 0.6 * lost(seen, 1.5)
    assert lost(seen, 1.5) < 0.7 * lost(Gram.blank(64), 1.5)


def test_what_cannot_be_is_named() -> None:
    w = torch.randn(16, 16)
    with pytest.raises(RecipeError, match=r"bits=1.0 leaves no room .* from 2.31 bits"):
        nanoquant(Dense(values=w), Gram.blank(16))
    with pytest.raises(RecipeError, match="keeps no pruned weight"):
        nanoquant(Masked.of(w, w > 0), Gram.blank(16), bits=4.0)
