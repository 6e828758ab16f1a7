"""Codebooks under the Gram against their literal definitions, and wrong variants that those must catch."""

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lissom.errors import RecipeError
from lissom.formats import Dense, Palette
from lissom.statistics import Gram, Moments
from lissom.techniques.prune.magnitude import magnitude
from lissom.techniques.share import descent, vectors
from lissom.techniques.share.kmeans import kmeans
from lissom.techniques.share.lnq import lnq

Case = tuple[Tensor, Any, Tensor]


def gram(inputs: int) -> Gram:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(200, inputs, generator=random) * torch.logspace(-0.5, 0.5, inputs)
    found = Gram.zero(inputs)
    found.see(x @ (torch.eye(inputs) + 0.3 * torch.randn(inputs, inputs, generator=random)))
    return found


def case(module: Any, d: int, o: int = 5, i: int = 8, rows: int = 2) -> Case:
    """Weights, a state in the middle of things (pruned, scaled, a last codebook of fewer rows), and H."""
    random = torch.Generator().manual_seed(2)
    shared = module.Shared(
        books=torch.randn(-(-o // rows), 4, d, generator=random).half().float(),
        indices=torch.randint(4, (o, i // d), generator=random),
        rows=rows,
        scale=(0.5 + torch.rand(o, 2, generator=random)).half().float(),
        kept=torch.rand(o, i, generator=random) < 0.8,
    )
    return torch.randn(o, i, generator=random), shared, gram(i).mean


def energy(row: Tensor, v: Tensor, h: Tensor) -> float:
    gap = (row - v).double()
    return float(gap @ h.double() @ gap)


def value(shared: Any, row: int) -> Tensor:
    """A row, entry by entry."""
    _, _, d = shared.books.shape
    i = shared.indices.shape[1] * d
    found = torch.zeros(i)
    for j in range(i):
        if shared.kept is None or shared.kept[row, j]:
            entry = shared.books[row // shared.rows, shared.indices[row, j // d], j % d]
            found[j] = entry * (1 if shared.scale is None else shared.scale[row, j * shared.scale.shape[1] // i])
    return found


def check_dense(module: Any, d: int) -> None:
    w, shared, h = case(module, d)
    torch.testing.assert_close(shared.dense(), torch.stack([value(shared, row) for row in range(len(w))]))
    torch.testing.assert_close(shared.palette().dense(), shared.dense())
    by_hand = [energy(w[row], value(shared, row), h) for row in range(len(w))]
    by_book = torch.tensor([sum(by_hand[first : first + 2]) for first in (0, 2, 4)])
    torch.testing.assert_close(module.errors(w, shared, h), by_book, rtol=1e-4, atol=1e-4)


def check_refit(module: Any, d: int) -> None:
    """Normal equations, each codebook's rows stacked."""
    w, shared, h = case(module, d)
    found = module.refit(w, shared, h, 30).books
    for book in range(3):
        normal, right = torch.zeros(4 * d, 4 * d).double(), torch.zeros(4 * d).double()
        for row in range(book * 2, min(book * 2 + 2, len(w))):
            p = torch.zeros(8, 4 * d).double()
            for j in range(8):
                p[j, shared.indices[row, j // d] * d + j % d] = shared.kept[row, j] * shared.scale[row, j // 4]
            normal, right = normal + p.T @ h.double() @ p, right + p.T @ h.double() @ w[row].double()
        expected = torch.linalg.lstsq(normal, right, driver="gelsd").solution
        used = normal.diagonal() > 0
        solved = found[book].flatten().double()
        assert float(solved @ normal @ solved / 2 - solved @ right) == pytest.approx(
            float(expected @ normal @ expected / 2 - expected @ right), rel=1e-4
        )
        assert torch.equal(found[book].flatten()[~used], shared.books[book].flatten()[~used])


def check_descend(module: Any, d: int) -> None:
    """Every entry tried at every place, the whole error computed anew."""
    w, shared, h = case(module, d, o=13, i=16)
    found = module.descend(w, shared, h)
    tried = replace(shared, indices=shared.indices.clone())
    for row in range(len(w)):
        for place in range(16 // d):
            costs = []
            for entry in range(4):
                tried.indices[row, place] = entry
                costs.append(energy(w[row], value(tried, row), h))
            tried.indices[row, place] = costs.index(min(costs))
    by_hand = torch.tensor([energy(w[row], value(tried, row), h) for row in range(len(w))])
    result = replace(shared, indices=found)
    torch.testing.assert_close(
        torch.tensor([energy(w[row], value(result, row), h) for row in range(len(w))]), by_hand, rtol=1e-4, atol=1e-4
    )


def check_rescale(module: Any, d: int) -> None:
    """Each group's scale where a parabola through three points has its bottom."""
    w, shared, h = case(module, d)
    shared = replace(shared, kept=torch.ones_like(shared.kept))
    found, tried = module.rescale(w, shared, h).scale, replace(shared, scale=shared.scale.clone())
    for row in range(len(w)):
        for g in range(2):
            costs = []
            for s in (0.0, 1.0, 2.0):
                tried.scale[row, g] = s
                costs.append(energy(w[row], value(tried, row), h))
            best = (3 * costs[0] - 4 * costs[1] + costs[2]) / (2 * (costs[0] - 2 * costs[1] + costs[2]))
            tried.scale[row, g] = best if best > 0 else shared.scale[row, g]
    torch.testing.assert_close(found, tried.scale, rtol=2e-3, atol=2e-3)  # stored in float16


def check_start(module: Any, d: int, damp: float = 0.01) -> None:
    """Optimal brain quantization of a few inputs at a time, the inverse of what is left computed anew."""
    w, shared, h = case(module, d)
    found = module.start(w, shared, h, damp).indices
    damped = (h + damp * h.diagonal().mean() * torch.eye(8)).double()
    strength = h.diagonal().reshape(-1, d).sum(1)
    left, rows = w.double().clone(), torch.arange(len(w))
    expected = torch.zeros_like(found)
    rest = strength.argsort(descending=True, stable=True).tolist()
    while rest:
        place = rest[0]
        columns = torch.tensor([p * d + k for p in rest for k in range(d)])
        inverse = torch.linalg.inv(damped[columns][:, columns])
        own, metric = columns[:d], torch.linalg.inv(inverse[:d, :d])
        entries = (
            shared.books[rows // 2].double() * shared.scale[:, own // 4].unsqueeze(1) * shared.kept[:, own, None].mT
        )
        gap = left[:, own].unsqueeze(1) - entries
        expected[:, place] = (gap @ metric * gap).sum(2).argmin(1)
        error = (left[:, own] - entries[rows, expected[:, place]]) @ metric
        left[:, columns] -= error @ inverse[:d]
        rest = rest[1:]
    unpruned = shared.kept.reshape(len(w), -1, d).any(2)  # the entry of what is wholly pruned says nothing
    assert torch.equal(found[unpruned], expected[unpruned])


CHECKS: dict[str, Callable[[Any, int], None]] = {
    "dense": check_dense,
    "refit": check_refit,
    "descend": check_descend,
    "rescale": check_rescale,
    "start": check_start,
}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(descent, "BLOCK", 4)  # so that 8 inputs cross a border
    return


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", CHECKS)
def test_each_turn_is_its_definition(name: str, d: int, small_blocks: None) -> None:
    """The checks assert; `test_a_wrong_variant_is_caught` sees that they can fail."""
    CHECKS[name](descent, d)


MUTANTS = {
    "scale left out of the normal equations": (
        "refit",
        "masked(matrix, shared.kept), shared.scale)",
        "masked(matrix, shared.kept), None)",
    ),
    "pruned weights counted in the normal equations": (
        "refit",
        "multiplied(masked(matrix, shared.kept)",
        "multiplied((matrix)",
    ),
    "one step of conjugate gradients": ("refit", "in range(steps)", "in range(1)"),
    "Gram's diagonal only in the normal equations": (
        "refit",
        "felt = gather(spread(direction) @ h)",
        "felt = gather(spread(direction) * h.diagonal())",
    ),
    "own weight not added back": ("descend", "(here[at] + inside[at, at] @ old).T", "here[at].T"),
    "errors not fed on inside a block": ("descend", "here.addmm_(inside[:, at], v[own] - old, alpha=-1)", "pass"),
    "errors fed on with the wrong sign": ("descend", "v[own] - old, alpha=-1", "v[own] - old, alpha=1"),
    "later blocks not told": ("descend", "r[block.stop :].addmm_", "r[block.stop :].addmm"),
    "metric off its diagonal dropped": (
        "descend",
        "shared, own, inside[at, at],",
        "shared, own, inside[at, at].diag().diag(),",
    ),
    "linear term half": ("descend", "alpha=-2", "alpha=-1"),
    "pruned inputs counted in the metric": ("descend", "if kept is None:\n        cost", "if True:\n        cost"),
    "scale's group taken from the place": ("descend", "inputs.start * self.scale.shape[1]", "0 * self.scale.shape[1]"),
    "scales fitted without the other groups": ("rescale", "r -= (u[:, own]", "0 * (u[:, own]"),
    "scale doubled": ("rescale", "best = scale[:, g] + ", "best = 2 * scale[:, g] + "),
    "wrong codebook for a row": ("dense", "// self.rows", "% self.rows"),
    "sweep in the plain order": (
        "start",
        "argsort(descending=True, stable=True)",
        "argsort(descending=False, stable=True)",
    ),
    "sweep without damping": ("start", "damp=damp", "damp=0.0"),
    "metric of the sweep inverted": ("start", "torch.cholesky_inverse(", "(lambda t, upper: t.T @ t)("),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_variant_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check, right, wrong = MUTANTS[name]
    source = inspect.getsource(descent)
    assert right in source
    mutant = ModuleType("mutant")
    monkeypatch.setitem(sys.modules, "mutant", mutant)
    exec(compile(source.replace(right, wrong).replace("BLOCK = 128", "BLOCK = 8"), "mutant", "exec"), mutant.__dict__)
    knobs = {"damp": 1.0} if name == "sweep without damping" else {}
    with pytest.raises(AssertionError):
        CHECKS[check](mutant, 2, **knobs)


def error(w: Tensor, v: Tensor, h: Tensor) -> float:
    return float(((w - v) @ h * (w - v)).sum())


@pytest.mark.parametrize("d", [1, 2])
def test_the_turns_never_make_it_worse_and_stop(d: int) -> None:
    w, shared, h = case(descent, d, o=24, i=64, rows=6)
    before = error(w, shared.dense(), h)
    for iterations in (1, 2, 5):
        after = error(w, descent.improve(w, shared, h, iterations).dense(), h)
        assert after < before
        before = after * (1 + 1e-5)
    done = descent.improve(w, shared, h, 200)
    assert error(w, descent.improve(w, done, h, 1).dense(), h) > 0.998 * error(w, done.dense(), h)


def test_codebooks_fitted_under_the_gram_beat_those_that_are_not() -> None:
    w, x = Dense(values=torch.randn(32, 64, generator=torch.Generator().manual_seed(3))), gram(64)
    moments = Moments(1, torch.zeros(64), x.power, x.power.sqrt())
    near, fitted = kmeans(w, moments, bits=3, rows=1), lnq(w, x, bits=3, rows=1)
    assert fitted.nbytes == near.nbytes
    assert fitted.scale is None
    assert error(w.values, fitted.dense(), x.mean) < 0.6 * error(w.values, near.dense(), x.mean)
    pairs = vectors.vectors(w, x, bits=6, width=2)
    assert error(w.values, pairs.dense(), x.mean) < error(w.values, lnq(w, x, bits=3).dense(), x.mean)


@pytest.mark.parametrize(("bits", "width", "group"), [(4, 2, 0), (5, 4, 16), (3, 1, 8), (3, 8, 0)])
def test_a_pruned_palette_keeps_its_zeros_and_counts_its_bytes(bits: int, width: int, group: int) -> None:
    w = magnitude(Dense(values=torch.randn(6, 32, generator=torch.Generator().manual_seed(4))), sparsity=0.5)
    found = vectors.vectors(w, gram(32), bits=bits, width=width, group=group)
    assert isinstance(found, Palette)
    assert (found.dense()[w.dense() == 0] == 0).all()
    assert found.spec()["group"] == (group or 32)
    codes = 96 if width == 1 else 6 * 32 // width  # of single weights only those that were kept
    packed = 4 * -(-codes * bits // 32) if width == 1 else 6 * 4 * -(-32 // width * bits // 32)
    assert found.nbytes == packed + 2 * 2**bits * width + 2 * 6 * 32 // (group or 32) + 6 * 32 // 8


def test_vector_means_start_from_products_and_get_better() -> None:
    random = torch.Generator().manual_seed(5)
    points = torch.randn(1, 400, 2, generator=random) @ torch.tensor([[1.0, 0.9], [0.0, 0.4]])
    weights = torch.rand(1, 400, 2, generator=random)

    def cost(book: Tensor) -> Tensor:
        return (weights[0].unsqueeze(1) * (points[0].unsqueeze(1) - book).square()).sum(2).amin(1).sum()

    product, fitted = vectors.product(points, weights, 16)[0], vectors.fit(points, weights, 16)[0]
    assert [len(axis.unique()) for axis in product.T] == [4, 4]
    assert cost(fitted) < 0.9 * cost(product)
    nearest = (weights[0].unsqueeze(1) * (points[0].unsqueeze(1) - fitted).square()).sum(2).argmin(1)
    again = vectors.lloyd(points[0], weights[0], fitted, 1)
    for entry in nearest.unique().tolist():
        mine = nearest == entry
        mean = (weights[0] * points[0])[mine].sum(0) / weights[0][mine].sum(0)
        torch.testing.assert_close(again[entry], mean)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"width": 3}, "width=3 does not divide 32 inputs; try 2, 4, 8"),
        ({"group": 24}, "group=24 does not divide 32 inputs"),
        ({"group": 2, "width": 4}, "width=4 does not divide group=2"),
        ({"bits": 9}, "bits=9"),
        ({"rows": -1}, "rows=-1"),
        ({"width": 0}, "width=0 does not divide"),
    ],
)
def test_impossible_codebooks_are_named(knobs: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        vectors.vectors(Dense(values=torch.randn(4, 32)), gram(32), **knobs)  # type: ignore[arg-type]
