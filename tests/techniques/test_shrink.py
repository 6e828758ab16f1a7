"""Channels taken away, against the literal definition: least squares on the data itself, for every choice there is."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lissom.coupling import Coupling, Reader, columns
from lissom.errors import RecipeError
from lissom.statistics import Gram
from lissom.techniques import SHAPE
from lissom.techniques.contract import grain, kinds, knobs, needs
from lissom.techniques.prune import shrink as module
from lissom.techniques.prune.channels import channels
from lissom.techniques.prune.heads import heads
from lissom.techniques.prune.shrink import remaining, repaired, shrink

CHANNELS, EACH, OTHERS, GONE = 6, 2, 3, 3


def data(features: int, seed: int) -> Tensor:
    """Features that go together, of different sizes, and far from zero."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(500, features, generator=generator) @ torch.randn(features, features, generator=generator)
    return mixed * torch.rand(features, generator=generator) + torch.randn(features, generator=generator) * 2


def seen(x: Tensor) -> Gram:
    gram = Gram.zero(x.shape[1])
    gram.see(x)
    return gram


def case(bias: bool = True) -> tuple[Coupling, list[Tensor]]:
    """Two readers, one of which reads something else too, and two makers."""
    xs = [data(CHANNELS * EACH, 0), data(CHANNELS * EACH + OTHERS, 1)]
    at = torch.arange(CHANNELS * EACH).reshape(EACH, CHANNELS).T.flatten()  # first one column of each, then the other
    readers = tuple(
        Reader(
            matrix=torch.randn(4 + n, x.shape[1]),
            bias=torch.randn(4 + n) if bias else None,
            others=OTHERS if n else 0,
            at=torch.cat([at, torch.arange(len(at), x.shape[1])]),
        )
        for n, x in enumerate(xs)
    )
    makers = (torch.randn(CHANNELS, 5), torch.randn(CHANNELS * 3, 1))
    return Coupling(channels=CHANNELS, makers=makers, readers=readers), xs


def fitted(r: Reader, x: Tensor, keep: list[int]) -> tuple[Tensor, Tensor, float]:
    """The best W' and b' on the data, and the part of the output's variance that is lost."""
    at = [j * EACH + k for j in keep for k in range(EACH)] + list(range(x.shape[1] - r.others, x.shape[1]))
    wanted = x.double() @ r.matrix.double().T + (0 if r.bias is None else r.bias.double())
    given = x[:, at].double()
    if r.bias is not None:
        given = torch.cat([given, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    solution = torch.linalg.lstsq(given, wanted).solution
    lost = (given @ solution - wanted).square().sum()
    size = (wanted - wanted.mean(0)).square().sum() if r.bias is not None else wanted.square().sum()
    return solution[: len(at)].T, solution[-1], float(lost / size)


def literally(c: Coupling, xs: list[Tensor], count: int) -> list[int]:
    """The channels that stay when each time the one goes without which all readers can be fitted best."""
    keep = list(range(c.channels))
    for _ in range(count):
        costs = {
            j: sum(fitted(r, x, [k for k in keep if k != j])[2] for r, x in zip(c.readers, xs, strict=True))
            for j in keep
        }
        keep.remove(min(costs, key=costs.__getitem__))
    return keep


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_greedy_least_squares(bias: bool) -> None:
    c, xs = case(bias)
    after = shrink(c, [seen(x) for x in xs], sparsity=0.5, multiple=1, damp=1e-12, repair=True)
    keep = literally(c, xs, GONE)
    assert after.alive is not None
    assert after.alive.tolist() == keep
    assert after.channels == CHANNELS - GONE
    for r, made, x in zip(c.readers, after.readers, xs, strict=True):
        matrix, shift, _ = fitted(r, x, keep)
        torch.testing.assert_close(made.matrix, matrix.float(), rtol=1e-3, atol=1e-3)
        if made.bias is not None:
            torch.testing.assert_close(made.bias, shift.float(), rtol=1e-3, atol=1e-2)
    assert torch.equal(after.makers[0], c.makers[0][keep])
    assert torch.equal(after.makers[1], c.makers[1].reshape(CHANNELS, 3, 1)[keep].reshape(-1, 1))


def test_what_it_costs_is_what_is_lost() -> None:
    c, xs = case()
    standing = [module.Standing.of([r], seen(x), 1e-12) for r, x in zip(c.readers, xs, strict=True)]
    lost, keep = 0.0, list(range(CHANNELS))
    for j in (4, 1):
        lost += float(module.cost(standing, CHANNELS)[j])
        for s in standing:
            s.remove(torch.tensor([j]), CHANNELS)
        keep.remove(j)
        assert lost == pytest.approx(sum(fitted(r, x, keep)[2] for r, x in zip(c.readers, xs, strict=True)), rel=1e-3)


MUTANTS: dict[str, Callable[[Coupling, list[Tensor]], tuple[list[int], Tensor, Tensor]]] = {}


def mutant(name: str) -> Callable[[Callable[..., Coupling]], None]:
    def put(function: Callable[..., Coupling]) -> None:
        def run(c: Coupling, xs: list[Tensor]) -> tuple[list[int], Tensor, Tensor]:
            after = function(c, xs)
            assert after.alive is not None
            assert after.readers[1].bias is not None
            return after.alive.tolist(), after.readers[1].matrix, after.readers[1].bias

        MUTANTS[name] = run

    return put


def right(c: Coupling, xs: list[Tensor], grams: list[Gram] | None = None, keep: Tensor | None = None) -> Coupling:
    """The technique, with something exchanged."""
    grams = grams or [seen(x) for x in xs]
    keep = remaining(c, grams, GONE, 1e-12) if keep is None else keep
    fit = [repaired(r, x, columns(r, keep, CHANNELS), 1e-12) for r, x in zip(c.readers, grams, strict=True)]
    return replace(c.keeping(keep), readers=tuple(fit))


@mutant("the covariance forgotten where there is a bias")
def _(c: Coupling, xs: list[Tensor]) -> Coupling:
    return right(c, xs, [Gram(g.n, g.xtx, torch.zeros_like(g.sum)) for g in map(seen, xs)])


@mutant("only the diagonal of the Gram")
def _(c: Coupling, xs: list[Tensor]) -> Coupling:
    return right(c, xs, [Gram(g.n, g.xtx.diagonal().diag(), g.sum) for g in map(seen, xs)])


@mutant("the kept and the removed exchanged")
def _(c: Coupling, xs: list[Tensor]) -> Coupling:
    keep = remaining(c, [seen(x) for x in xs], GONE, 1e-12).tolist()
    return right(c, xs, keep=torch.tensor([j for j in range(CHANNELS) if j not in keep]))


@mutant("columns one off")
def _(c: Coupling, xs: list[Tensor]) -> Coupling:
    return right(c, [x.roll(1, 1) for x in xs])


@mutant("no repair")
def _(c: Coupling, xs: list[Tensor]) -> Coupling:
    return c.keeping(remaining(c, [seen(x) for x in xs], GONE, 1e-12))


@mutant("a heavy ridge")
def _(c: Coupling, xs: list[Tensor]) -> Coupling:
    return shrink(c, [seen(x) for x in xs], sparsity=0.5, multiple=1, damp=10.0, repair=True)


@mutant("the bias as it was")
def _(c: Coupling, xs: list[Tensor]) -> Coupling:
    after = right(c, xs)
    return replace(after, readers=tuple(replace(n, bias=o.bias) for n, o in zip(after.readers, c.readers, strict=True)))


@mutant("the second reader's Gram for the first")
def _(c: Coupling, xs: list[Tensor]) -> Coupling:
    return right(c, [xs[1][:, : CHANNELS * EACH], torch.cat([xs[0], xs[1][:, -OTHERS:]], 1)])


@pytest.mark.parametrize("name", MUTANTS)
def test_the_oracle_catches_what_is_wrong(name: str) -> None:
    c, xs = case()
    keep = literally(c, xs, GONE)
    matrix, shift, _ = fitted(c.readers[1], xs[1], keep)
    found, made, bias = MUTANTS[name](c, xs)
    near = found == keep and torch.allclose(made, matrix.float(), rtol=1e-3, atol=1e-3)
    assert not (near and torch.allclose(bias, shift.float(), rtol=1e-3, atol=1e-2))


def test_two_that_stand_for_each_other_do_not_both_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a wide layer several go at once; each of a pair alone costs nothing, both cost much."""
    x = data(64, 3)
    x = torch.cat([x[:, :32], x[:, :32]], 1)
    c = Coupling(channels=64, makers=(), readers=(Reader(matrix=torch.randn(8, 64)),))
    monkeypatch.setattr(module, "ROUNDS", 4)  # sixteen at a time
    after = shrink(c, [seen(x)], sparsity=0.5, multiple=1, damp=1e-6, repair=True)
    assert after.alive is not None
    assert sorted(after.alive.remainder(32).tolist()) == list(range(32))
    said = x[:, after.alive] @ after.readers[0].matrix.T
    torch.testing.assert_close(said, x @ c.readers[0].matrix.T, rtol=1e-2, atol=1e-2 * float(said.abs().max()))


def test_readers_of_one_input_count_each_for_itself() -> None:
    c, xs = case()
    second = replace(c.readers[0], matrix=torch.randn(7, CHANNELS * EACH) * 100, bias=torch.randn(7))
    c, xs = replace(c, readers=(c.readers[0], second, c.readers[1])), [xs[0], xs[0], xs[1]]
    grams = [seen(xs[0])] * 2 + [seen(xs[2])]
    after = shrink(c, grams, sparsity=0.5, multiple=1, damp=1e-12, repair=True)
    assert after.alive is not None
    assert after.alive.tolist() == literally(c, xs, GONE)
    apart = shrink(c, [seen(x) for x in xs], sparsity=0.5, multiple=1, damp=1e-12, repair=True)
    assert all(torch.allclose(a.matrix, b.matrix) for a, b in zip(after.readers, apart.readers, strict=True))


SHRINKING = [technique for technique in SHAPE if "sparsity" in knobs(technique)]


def given_to(technique: str) -> dict[str, Any]:
    return {"sparsity": 0.5} if technique in SHRINKING else {"keep": 1, "of": 3}


@pytest.mark.parametrize("technique", SHAPE)
def test_laws(technique: str) -> None:
    c, xs = case()
    c, given = replace(c, kind=kinds(technique)[0]), given_to(technique)
    before = [t.clone() for t in (*c.makers, *(r.matrix for r in c.readers))]
    grams = tuple(seen(x) for x in xs)
    one, two = (SHAPE[technique](c, grams, **given) for _ in range(2))
    assert one.alive is not None
    assert two.alive is not None
    assert torch.equal(one.alive, two.alive)
    assert all(torch.equal(a.matrix, b.matrix) for a, b in zip(one.readers, two.readers, strict=True))
    assert all(torch.equal(t, b) for t, b in zip((*c.makers, *(r.matrix for r in c.readers)), before, strict=True))
    assert (grain(technique), needs(technique)) == ("shape", (Gram,))
    assert all(type(default) in types for types, default in knobs(technique).values())
    blank = SHAPE[technique](c, tuple(Gram.blank(x.shape[1]) for x in xs), **given)
    assert blank.channels == one.channels
    assert all(r.matrix.isfinite().all() for r in blank.readers)
    for r, made in zip(c.readers, one.readers, strict=True):
        assert r.at is not None
        assert made.at is not None
        assert torch.equal(made.at, r.at[columns(r, one.alive, CHANNELS)])


@pytest.mark.parametrize("technique", SHRINKING)
def test_a_tenth_of_six_is_none(technique: str) -> None:
    c, xs = case()
    grams = tuple(seen(x) for x in xs)
    assert SHAPE[technique](replace(c, kind=technique), grams, sparsity=0.5).channels < CHANNELS
    assert SHAPE[technique](replace(c, kind=technique), grams, sparsity=0.1).alive is None


def test_channels_and_heads_leave_each_other_alone() -> None:
    c, xs = case()
    grams = tuple(seen(x) for x in xs)
    assert heads(c, grams, sparsity=0.5) is c
    assert channels(replace(c, kind="heads"), grams).kind == "heads"
    assert channels(replace(c, kind="heads"), grams).channels == CHANNELS


def test_what_is_left_is_a_multiple() -> None:
    c, xs = case()
    grams = tuple(seen(x) for x in xs)
    assert [channels(c, grams, sparsity=s, multiple=4).channels for s in (0.2, 0.5, 0.9)] == [6, 4, 4]


def test_dead_channels_cost_nothing_and_go_first() -> None:
    c, xs = case()
    for x in xs:
        x[:, [0, 1, 6, 7]] = 0
    after = channels(c, tuple(seen(x) for x in xs), sparsity=0.34)
    assert after.alive is not None
    assert after.alive.tolist() == [1, 2, 4, 5]
    assert all(r.matrix.isfinite().all() for r in after.readers)


@pytest.mark.parametrize("seed", range(8))
def test_one_example_is_no_trouble(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, matrix = torch.randn(1, 32, generator=generator).relu(), torch.randn(8, 32, generator=generator)
    reader = Reader(matrix=matrix, bias=torch.randn(8, generator=generator))
    c = Coupling(channels=32, makers=(torch.randn(32, 5, generator=generator),), readers=(reader,))
    after = channels(c, (seen(x),))
    short = after.readers[0]
    assert after.alive is not None
    assert short.bias is not None
    assert short.matrix.abs().max() < 2 * matrix.abs().max()
    torch.testing.assert_close(x[:, after.alive] @ short.matrix.T + short.bias, x @ matrix.T + reader.bias)


def test_a_sparsity_that_is_none_is_refused() -> None:
    c, xs = case()
    with pytest.raises(RecipeError, match=r"sparsity=1\.0 must be a fraction"):
        channels(c, tuple(seen(x) for x in xs), sparsity=1.0)


def test_the_sum_of_a_gram_merges_like_one_pass() -> None:
    x = data(5, 4)
    whole, parts = seen(x), seen(x[:200]).merge(seen(x[200:]))
    torch.testing.assert_close(parts.sum, whole.sum)
    torch.testing.assert_close(whole.center, x.mean(0))
    assert torch.equal(Gram.zero(5).merge(whole).sum, whole.sum)
    assert Gram.blank(5).center.tolist() == [0] * 5
