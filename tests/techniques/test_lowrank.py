"""Low rank and residual against their literal definitions, and wrong variants that the comparison catches."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lissom.errors import RecipeError
from lissom.formats import Affine, Dense, LowRank, Masked, Sum
from lissom.statistics import Gram, Moments
from lissom.techniques.prune.magnitude import magnitude
from lissom.techniques.quantize.gptq import gptq
from lissom.techniques.quantize.rtn import rtn
from lissom.techniques.share.lowrank import directions, lowrank
from lissom.techniques.share.residual import correction, refitted, residual

SHAPES = [(12, 20), (20, 12), (16, 16)]


def example(o: int, i: int) -> tuple[Tensor, Tensor]:
    """A matrix, and inputs whose features differ in size and go together."""
    generator = torch.Generator().manual_seed(10 * o + i)
    x = torch.randn(200, i, generator=generator) * torch.logspace(-1, 0.5, i)
    x = x @ (torch.eye(i) + 0.3 * torch.randn(i, i, generator=generator))
    return torch.randn(o, i, generator=generator), x


def gram(x: Tensor) -> Gram:
    found = Gram.zero(x.shape[1])
    found.see(x)
    return found


def error(w: Tensor, v: Tensor, x: Tensor) -> float:
    return float((x @ (w - v).T).square().sum())


def svd_llm(w: Tensor, x: Tensor, rank: int) -> Tensor:
    """The paper's way: whiten by the Cholesky factor of XᵀX, cut the SVD, colour again."""
    s = torch.linalg.cholesky((x.T @ x).double())
    u, sigma, v = torch.linalg.svd(w.double() @ s)
    return ((u[:, :rank] * sigma[:rank]) @ v[:rank] @ torch.linalg.inv(s)).float()


def qera(w: Tensor, x: Tensor, rank: int) -> Tensor:
    """The paper's way: the symmetric root of XᵀX, and its inverse."""
    values, vectors = torch.linalg.eigh((x.T @ x).double())
    root = vectors @ values.sqrt().diag() @ vectors.T
    u, sigma, v = torch.linalg.svd(w.double() @ root)
    return ((u[:, :rank] * sigma[:rank]) @ v[:rank] @ torch.linalg.inv(root)).float()


@pytest.mark.parametrize("shape", SHAPES)
def test_low_rank_is_the_whitened_svd(shape: tuple[int, int]) -> None:
    w, x = example(*shape)
    found = lowrank(Dense(values=w), gram(x), rank=4)
    assert found.rank == 4
    torch.testing.assert_close(found.dense(), svd_llm(w, x, 4), rtol=0, atol=5e-3)  # float16
    assert error(w, found.dense(), x) == pytest.approx(error(w, svd_llm(w, x, 4), x), rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_residual_is_the_exact_solution_of_qera(shape: tuple[int, int]) -> None:
    w, x = example(*shape)
    base = rtn(Dense(values=w), Moments.blank(x.shape[1]), bits=2)
    found = residual(base, Dense(values=w), gram(x), rank=3, bits=16)
    assert found.base is base
    best = qera(w - base.dense(), x, 3)
    torch.testing.assert_close(found.correction.dense(), best, rtol=0, atol=5e-3)
    assert error(w, found.dense(), x) == pytest.approx(error(w, base.dense() + best, x), rel=1e-4)


WRONG: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "the Gram left out": lambda w, h, r: projected(w, torch.eye(len(h)), r),
    "the Gram's inverse": lambda w, h, r: projected(w, torch.linalg.inv(h), r),
    "only the Gram's diagonal": lambda w, h, r: projected(w, h.diagonal().diag(), r),
    "features in another order": lambda w, h, r: projected(w, h.flip(0).flip(1), r),
    "the smallest directions": lambda w, h, r: smallest(w, h, r),
    "one direction too few": lambda w, h, r: projected(w, h, r - 1),
    "one direction too many": lambda w, h, r: projected(w, h, r + 1),
    "projected inputs, not outputs": lambda w, h, r: w @ (v := torch.linalg.eigh(h).eigenvectors[:, -r:]) @ v.T,
    "whitened with the factor's transpose": lambda w, h, r: whitened(w, torch.linalg.cholesky(h).T, r),
    "coloured again with the factor itself": lambda w, h, r: coloured(w, torch.linalg.cholesky(h), r),
}


def projected(w: Tensor, h: Tensor, rank: int) -> Tensor:
    u = directions(w, h, rank)
    return u @ (u.T @ w)


def smallest(w: Tensor, h: Tensor, rank: int) -> Tensor:
    u = torch.linalg.eigh(w @ h @ w.T).eigenvectors[:, :rank]
    return u @ (u.T @ w)


def whitened(w: Tensor, s: Tensor, rank: int) -> Tensor:
    u, sigma, v = torch.linalg.svd(w @ s)
    return (u[:, :rank] * sigma[:rank]) @ v[:rank] @ torch.linalg.inv(s)


def coloured(w: Tensor, s: Tensor, rank: int) -> Tensor:
    u, sigma, v = torch.linalg.svd(w @ s)
    return (u[:, :rank] * sigma[:rank]) @ v[:rank] @ s.T


def same_as_the_paper(found: Tensor, w: Tensor, x: Tensor, rank: int) -> bool:
    best = svd_llm(w, x, rank)
    return torch.allclose(found, best, rtol=0, atol=5e-3)


def test_the_right_variant_is_taken_for_right() -> None:
    w, x = example(12, 20)
    assert same_as_the_paper(projected(w, gram(x).mean, 4), w, x, 4)
    assert same_as_the_paper(whitened(w, torch.linalg.cholesky(gram(x).mean), 4), w, x, 4)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_variant_is_caught(name: str) -> None:
    w, x = example(12, 20)
    assert not same_as_the_paper(WRONG[name](w, gram(x).mean, 4), w, x, 4)


@pytest.mark.parametrize(("shape", "keep"), [((12, 20), 0.8), ((12, 20), 0.3), ((20, 12), 1.0), ((3, 50), 0.1)])
def test_so_many_parameters_are_kept(shape: tuple[int, int], keep: float) -> None:
    o, i = shape
    w, x = example(o, i)
    rank = lowrank(Dense(values=w), gram(x), keep=keep).rank
    assert rank == 1 or rank * (o + i) <= keep * o * i
    assert (rank + 1) * (o + i) > keep * o * i


@pytest.mark.parametrize("technique", ["lowrank", "residual"])
def test_inputs_that_are_never_driven_do_no_harm(technique: str) -> None:
    w, x = example(16, 16)
    x = x[:5].clone()  # rank 5 at most
    x[:, 3] = 0
    weight, base = Dense(values=w), rtn(Dense(values=w), Moments.blank(16), bits=2)
    found = (
        lowrank(weight, gram(x), rank=5) if technique == "lowrank" else residual(base, weight, gram(x), rank=5, bits=8)
    )
    assert found.dense().isfinite().all()
    before = error(w, torch.zeros_like(w) if technique == "lowrank" else base.dense(), x)
    assert error(w, found.dense(), x) < 1e-3 * before  # five directions are all there is


def test_nothing_to_correct_is_corrected_by_nothing() -> None:
    w, x = example(12, 20)
    for bits in (16, 8):
        found = residual(Dense(values=w), Dense(values=w), gram(x), bits=bits, rank=4)
        assert torch.equal(found.dense(), w)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_left_factor_makes_good_for_the_rounding_of_the_right(bits: int) -> None:
    w, x = example(20, 12)
    found = residual(rtn(Dense(values=w), Moments.blank(12), bits=2), Dense(values=w), gram(x), rank=6, bits=bits)
    left, right = found.correction.a, found.correction.b
    assert isinstance(left, Affine)
    assert isinstance(right, Affine)
    assert left.bits == right.bits == bits
    error_of_base, b = w - found.base.dense(), right.dense()
    a = refitted(torch.zeros(20, 6), b, error_of_base, gram(x).mean)
    best = torch.linalg.lstsq((x @ b.T).double(), (x @ error_of_base.T).double()).solution.T
    torch.testing.assert_close(a, best.float(), rtol=1e-3, atol=1e-4)
    u = directions(error_of_base, gram(x).mean, 6)
    assert error(error_of_base, a @ b, x) < error(error_of_base, u @ b, x)


def test_narrow_factors_cost_what_they_say_and_little_quality() -> None:
    w, x = example(64, 64)
    weight, statistic = Dense(values=w), gram(x)
    base = gptq(weight, statistic, bits=2, group=0)
    wide, narrow = (residual(base, weight, statistic, rank=8, bits=bits) for bits in (16, 8))
    assert wide.nbytes == base.nbytes + 2 * 8 * (64 + 64)
    assert narrow.nbytes == base.nbytes + 8 * (64 + 64) + 2 * (64 + 8)  # and a float16 scale for each row
    errors = [error(w, v.dense(), x) for v in (base, narrow, wide)]
    assert errors[0] > 1.2 * errors[1]
    assert errors[1] == pytest.approx(errors[2], rel=1e-2)


def test_an_earlier_correction_is_replaced() -> None:
    w, x = example(12, 20)
    weight = Dense(values=w)
    once = residual(rtn(weight, Moments.blank(20), bits=3), weight, gram(x), rank=2)
    again = residual(once, weight, gram(x), rank=5)
    assert again.base is once.base
    assert again.correction.rank == 5
    assert torch.equal(again.dense(), residual(once.base, weight, gram(x), rank=5).dense())


def test_a_pruned_base_keeps_its_zeros_and_the_sum_says_that_it_is_not_sparse() -> None:
    w, x = example(12, 20)
    weight = Dense(values=w)
    pruned = magnitude(weight, sparsity=0.5)
    found = residual(pruned, weight, gram(x), rank=4)
    assert isinstance(found.base, Masked)
    assert (found.base.dense()[pruned.dense() == 0] == 0).all()
    assert found.kept() is None
    assert error(w, found.dense(), x) < error(w, pruned.dense(), x)


def test_a_product_refuses_a_pruned_weight() -> None:
    w, x = example(12, 20)
    with pytest.raises(RecipeError, match="cannot keep pruned weights at zero"):
        lowrank(magnitude(Dense(values=w), sparsity=0.5), gram(x))
    everything = Masked.of(w, torch.ones(12, 20, dtype=torch.bool))
    assert isinstance(lowrank(everything, gram(x)), LowRank)


def test_rounding_a_product_rounds_its_factors() -> None:
    w, x = example(24, 32)
    found = lowrank(Dense(values=w), gram(x), rank=4)
    rounded = rtn(found, Moments.blank(32), bits=8)
    assert isinstance(rounded, LowRank)
    assert rounded.nbytes == 4 * (24 + 32) + 2 * (24 + 4)  # codes, and a float16 scale for each row
    torch.testing.assert_close(rounded.dense(), found.dense(), rtol=0, atol=0.1)


def test_rounding_a_sum_rounds_its_base_and_leaves_the_correction() -> None:
    w, x = example(24, 32)
    before = Sum(base=Dense(values=w), correction=correction(torch.ones_like(w), gram(x), 2, 8))
    rounded = rtn(before, Moments.blank(32), bits=4)
    assert isinstance(rounded, Sum)
    assert isinstance(rounded.base, Affine)
    assert rounded.correction is before.correction


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"rank": 8}, "rank=8 does not make 12x20 weights smaller; choose 1 to 7"),
        ({"rank": 0}, "rank=0 does not make"),
        ({"keep": 1.5}, "keep=1.5 is no fraction"),
        ({"keep": 0.0}, "keep=0.0 is no fraction"),
    ],
)
def test_impossible_ranks_are_named(knobs: dict[str, float], message: str) -> None:
    w, x = example(12, 20)
    with pytest.raises(RecipeError, match=message):
        lowrank(Dense(values=w), gram(x), **knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"rank": 13}, "rank=13 does not suit 12x20 weights; choose 1 to 12"),
        ({"rank": 0}, "rank=0 does not suit"),
        ({"rank": 4, "bits": 12}, "bits=12 is not possible; choose 2, 3, 4, 5, 6, 7, 8 or 16"),
    ],
)
def test_impossible_corrections_are_named(knobs: dict[str, int], message: str) -> None:
    w, x = example(12, 20)
    with pytest.raises(RecipeError, match=message):
        residual(Dense(values=w / 2), Dense(values=w), gram(x), **knobs)
