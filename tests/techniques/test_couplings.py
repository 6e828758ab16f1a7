"""The techniques on couplings: their literal definitions, and that nothing they do changes what the readers say."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lissom.coupling import Coupling, Reader
from lissom.errors import RecipeError
from lissom.formats import Dense
from lissom.statistics import Gram, Moments
from lissom.techniques import COUPLING
from lissom.techniques.contract import knobs, needs
from lissom.techniques.quantize import awq as awq_file
from lissom.techniques.quantize.awq import awq
from lissom.techniques.quantize.rotate import hadamard, rotate, rotation
from lissom.techniques.quantize.rtn import rtn
from lissom.techniques.quantize.smooth import smooth

CHANNELS, UNIT = 32, 8
SCALING = ("smooth", "awq", "rotate")  # all of the grain


def test_every_coupling_technique_is_under_these_tests() -> None:
    assert set(SCALING) == set(COUPLING)


def data(columns: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, CHANNELS * columns, generator=generator) * torch.logspace(-1, 1, CHANNELS * columns)
    return x @ (torch.eye(len(x.T)) + 0.2 * torch.randn(len(x.T), len(x.T), generator=generator))


def coupling(columns: int = 1, rows: int = 1) -> Coupling:
    """Two makers, a matrix and a bias; two readers, which read a channel in so many columns."""
    generator = torch.Generator().manual_seed(4)
    made, read = CHANNELS * rows, CHANNELS * columns
    makers = torch.randn(made, 12, generator=generator), torch.randn(made, 1, generator=generator)
    matrices = (torch.randn(o, read, generator=generator) * torch.logspace(0, -1, read) for o in (10, 6))
    return Coupling(
        channels=CHANNELS, makers=makers, readers=tuple(Reader(matrix=m) for m in matrices), unit=UNIT, rotates=True
    )


def seen(x: Tensor) -> dict[Any, Any]:
    found = {kind: kind.zero(x.shape[1]) for kind in (Moments, Gram)}
    for statistic in found.values():
        statistic.see(x)
    return found


def run(name: str, c: Coupling, x: Tensor, **given: Any) -> Coupling:
    given = {"group": 16, **given} if name == "awq" else given
    return COUPLING[name](c, *(seen(x)[kind] for kind in needs(name)), **given)


def said(c: Coupling, z: Tensor) -> list[Tensor]:
    """What the readers make of what the makers made; each of a channel's columns reads its row of the same place."""
    channels = z @ c.makers[0].T + c.makers[1].flatten()
    return [channels.double() @ r.matrix.double().T for r in c.readers]


@pytest.mark.parametrize("name", SCALING)
@pytest.mark.parametrize("columns", [1, 2])
def test_what_the_readers_say_does_not_change(name: str, columns: int) -> None:
    c = coupling(columns, columns)
    after = run(name, c, data(columns))
    z = torch.randn(20, 12)
    for now, before in zip(said(after, z), said(c, z), strict=True):
        torch.testing.assert_close(now, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    assert not torch.allclose(after.readers[0].matrix, c.readers[0].matrix)


@pytest.mark.parametrize("name", SCALING)
def test_a_coupling_technique_is_pure_deterministic_and_runs_without_data(name: str) -> None:
    c, x = coupling(), data()
    before = [m.clone() for m in (*c.makers, *(r.matrix for r in c.readers))]
    once, twice = run(name, c, x), run(name, c, x)
    assert all(map(torch.equal, before, (*c.makers, *(r.matrix for r in c.readers))))
    assert all(torch.equal(a.matrix, b.matrix) for a, b in zip(once.readers, twice.readers, strict=True))
    assert [m.shape for m in once.makers] == [m.shape for m in c.makers]
    given = {"group": 0} if name == "awq" else {}
    blank = COUPLING[name](c, *(kind.blank(CHANNELS) for kind in needs(name)), **given)
    assert all(r.matrix.isfinite().all() for r in blank.readers)
    assert all(type(default) in types for types, default in knobs(name).values())


def test_a_channel_that_is_never_driven_stays_finite() -> None:
    c, x = coupling(), data()
    x[:, 5] = 0
    dead = replace(c, readers=tuple(Reader(matrix=r.matrix * (torch.arange(CHANNELS) != 7)) for r in c.readers))
    for name in ("smooth", "awq"):
        for given in (dead, c):
            after = run(name, given, x)
            assert all(m.isfinite().all() for m in (*after.makers, *(r.matrix for r in after.readers)))
        assert torch.equal(after.makers[0][5], c.makers[0][5])


def smooth_oracle(c: Coupling, x: Tensor, alpha: float) -> Tensor:
    """s, channel by channel."""
    s = torch.empty(CHANNELS)
    for j in range(CHANNELS):
        weight = max(float(abs(w)) for r in c.readers for w in r.matrix[:, j])
        s[j] = float(x[:, j].abs().max()) ** alpha / weight ** (1 - alpha)
    return s


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_smooth_is_its_definition(alpha: float) -> None:
    c, x = coupling(), data()
    after, s = smooth(c, seen(x)[Moments], alpha=alpha), smooth_oracle(c, x, alpha)
    torch.testing.assert_close(after.readers[1].matrix, c.readers[1].matrix * s)
    torch.testing.assert_close(after.makers[1], c.makers[1] / s.unsqueeze(1))
    if alpha == 1:  # the activations are as large in every channel
        torch.testing.assert_close((x / s).abs().amax(0), torch.ones(CHANNELS))


SMOOTH_MUTANTS: dict[str, Callable[[Coupling, Tensor], Tensor]] = {
    "upside down": lambda c, x: 1 / smooth_oracle(c, x, 0.8),
    "alpha for one minus alpha": lambda c, x: smooth_oracle(c, x, 0.2),
    "the first reader only": lambda c, x: smooth_oracle(replace(c, readers=c.readers[1:]), x, 0.8),
    "the root mean square for the largest": lambda c, x: smooth_oracle(c, x.square().mean(0, keepdim=True).sqrt(), 0.8),
    "the largest without its sign dropped": lambda c, x: smooth_oracle(c, x.clamp(min=0), 0.8),
}


@pytest.mark.parametrize("mutant", SMOOTH_MUTANTS)
def test_the_oracle_of_smooth_catches(mutant: str) -> None:
    c, x = coupling(), data()
    wrong = c.rescaled(SMOOTH_MUTANTS[mutant](c, x))
    right = smooth(c, seen(x)[Moments], alpha=0.8)
    assert not torch.allclose(wrong.readers[1].matrix, right.readers[1].matrix, rtol=1e-3)


def awq_error(c: Coupling, x: Tensor, s: Tensor, bits: int, group: int) -> float:
    """What rounding the scaled weights does to the output on the data itself."""
    total = 0.0
    for r in c.readers:
        scaled = seen(x / s)[Moments]
        rounded = rtn(Dense(values=r.matrix * s), scaled, bits=bits, group=group, clip=False).dense()
        total += float(
            ((x / s).double() @ rounded.T.double() - x.double() @ r.matrix.T.double()).square().mean(0).sum()
        )
    return total


def awq_oracle(c: Coupling, x: Tensor, bits: int, group: int) -> Tensor:
    """The best of 20 exponents, each tried on the data."""
    size = x.square().mean(0).sqrt()
    tried = [size ** (n / 20) for n in range(20)]
    tried = [s / (s.max() * s.min()).sqrt() for s in tried]
    return min(tried, key=lambda s: awq_error(c, x, s, bits, group))


@pytest.mark.parametrize(("bits", "group"), [(3, 16), (4, 0), (2, 8)])
def test_awq_is_the_best_of_its_exponents_on_the_data(bits: int, group: int) -> None:
    c, x = coupling(), data()
    after, s = awq(c, seen(x)[Gram], bits=bits, group=group), awq_oracle(c, x, bits, group)
    torch.testing.assert_close(after.readers[0].matrix, c.readers[0].matrix * s, rtol=1e-4, atol=1e-6)
    assert awq_error(c, x, s, bits, group) < 0.9 * awq_error(c, x, torch.ones(CHANNELS), bits, group)


AWQ_MUTANTS: dict[str, Callable[[Coupling, Tensor], Coupling]] = {
    "other bits": lambda c, x: awq(c, seen(x)[Gram], bits=8, group=16),
    "another group": lambda c, x: awq(c, seen(x)[Gram], bits=3, group=0),
    "the diagonal of the Gram": lambda c, x: awq(
        c, Gram(len(x), (x.T @ x).diagonal().diag(), x.sum(0)), bits=3, group=16
    ),
    "the square of the magnitude": lambda c, x: c.rescaled(awq_oracle(c, x, 3, 16) ** 2),
    "upside down": lambda c, x: c.rescaled(1 / awq_oracle(c, x, 3, 16)),
    "one reader": lambda c, x: awq(replace(c, readers=c.readers[1:]), seen(x)[Gram], bits=3, group=16),
}


@pytest.mark.parametrize("mutant", AWQ_MUTANTS)
def test_the_oracle_of_awq_catches(mutant: str) -> None:
    c, x = coupling(), data()
    right = c.rescaled(awq_oracle(c, x, 3, 16))
    assert not torch.allclose(AWQ_MUTANTS[mutant](c, x).makers[0], right.makers[0], rtol=1e-3)


def test_knobs_that_cannot_work_are_named() -> None:
    c, x = coupling(), data()
    with pytest.raises(RecipeError, match=r"alpha=2\.0 must be from 0 to 1"):
        smooth(c, seen(x)[Moments], alpha=2.0)
    with pytest.raises(RecipeError, match="group=24 does not divide 32 inputs"):
        awq(c, seen(x)[Gram], group=24)


@pytest.mark.parametrize("u", [1, 2, 12, 20, 24, 40, 64, 768])
def test_hadamard_matrices_are_signs_with_orthogonal_rows(u: int) -> None:
    h = hadamard(u)
    assert h is not None
    assert (h.abs() == 1).all()
    assert torch.equal(h @ h.T, u * torch.eye(u))


@pytest.mark.parametrize("u", [8, 20, 7, 36])
def test_rotations_are_orthogonal_and_random(u: int) -> None:
    q = rotation(u, 0)
    torch.testing.assert_close(q @ q.T, torch.eye(u), atol=1e-5, rtol=0)
    assert torch.equal(q, rotation(u, 0))
    assert not torch.equal(q, rotation(u, 1))


def rotate_oracle(c: Coupling, q: Tensor) -> tuple[Tensor, Tensor]:
    """Makers and readers one head and one channel at a time."""
    maker, reader = torch.zeros_like(c.makers[0]), torch.zeros_like(c.readers[0].matrix)
    for head in range(0, CHANNELS, UNIT):
        for new in range(UNIT):
            for old in range(UNIT):
                maker[head + new] += q[old, new] * c.makers[0][head + old]
                reader[:, head + new] += q[old, new] * c.readers[0].matrix[:, head + old]
    return maker, reader


def test_rotate_is_its_definition() -> None:
    c = coupling()
    maker, reader = rotate_oracle(c, rotation(UNIT, 0))
    torch.testing.assert_close(rotate(c).makers[0], maker, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rotate(c).readers[0].matrix, reader, rtol=1e-4, atol=1e-5)


ROTATE_MUTANTS: dict[str, Callable[[Coupling], Coupling]] = {
    "another seed": lambda c: rotate(c, seed=1),
    "across the heads": lambda c: rotate(replace(c, unit=2 * UNIT)),
    "makers the other way": lambda c: replace(
        rotate(c), makers=tuple(torch.block_diag(*[rotation(UNIT, 0)] * 4) @ m for m in c.makers)
    ),
    "makers only": lambda c: replace(rotate(c), readers=c.readers),
}


@pytest.mark.parametrize("mutant", ROTATE_MUTANTS)
def test_the_oracle_of_rotate_catches(mutant: str) -> None:
    c = coupling()
    maker, reader = rotate_oracle(c, rotation(UNIT, 0))
    wrong = ROTATE_MUTANTS[mutant](c)
    near = torch.allclose(wrong.makers[0], maker, atol=1e-3), torch.allclose(wrong.readers[0].matrix, reader, atol=1e-3)
    assert near != (True, True)


def test_channels_that_go_each_its_own_way_are_not_rotated() -> None:
    c = replace(coupling(), rotates=False)
    assert rotate(c) is c


def test_awq_tries_as_many_exponents_as_the_paper() -> None:
    assert awq_file.STEPS == 20
