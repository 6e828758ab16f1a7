"""Quantization against its literal definitions."""

import itertools

import pytest
import torch
from torch import Tensor

from lissom.errors import RecipeError
from lissom.formats import Binary, Dense, Palette
from lissom.statistics import Gram, Moments
from lissom.techniques import sweep
from lissom.techniques.prune.sparsegpt import sparsegpt
from lissom.techniques.quantize.binary import binary
from lissom.techniques.quantize.gptq import gptq
from lissom.techniques.quantize.grid import SHRINK, fit
from lissom.techniques.quantize.rtn import rtn
from lissom.techniques.share.kmeans import kmeans


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(200, 32, generator=generator) * torch.logspace(-1, 1, 32)
    x = x @ (torch.eye(32) + 0.3 * torch.randn(32, 32, generator=generator))
    return torch.randn(8, 32, generator=generator), x


def gram(x: Tensor) -> Gram:
    found = Gram.zero(x.shape[1])
    found.see(x)
    return found


def moments(x: Tensor) -> Moments:
    found = Moments.zero(x.shape[1])
    found.see(x)
    return found


@pytest.mark.parametrize(("bits", "symmetric"), list(itertools.product(range(2, 9), [True, False])))
def test_rounding_is_to_the_nearest_point_of_the_grid(data: tuple[Tensor, Tensor], bits: int, symmetric: bool) -> None:
    w, x = data
    result = rtn(Dense(values=w), moments(x), bits=bits, group=16, symmetric=symmetric)
    scale, zero = (t.repeat_interleave(16, 1).unsqueeze(-1) for t in (result.scale.float(), result.zeros()))
    grid = (torch.arange(2**bits) - zero) * scale
    nearest = (grid - w.unsqueeze(-1)).abs().amin(-1)
    torch.testing.assert_close((result.dense() - w).abs(), nearest, atol=1e-6, rtol=1e-5)


def test_the_searched_range_is_no_worse_than_the_full_one(data: tuple[Tensor, Tensor]) -> None:
    w, x = data
    power = x.square().mean(0)
    errors = [
        ((rtn(Dense(values=w), moments(x), bits=3, clip=clip).dense() - w).square() * power).sum()
        for clip in (True, False)
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(("bits", "symmetric"), list(itertools.product((2, 3, 4, 6, 8), [True, False])))
def test_the_range_found_is_nearly_the_best_of_all_that_there_are(bits: int, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    w, power = torch.randn(96, 4, 32, generator=generator), torch.rand(4, 32, generator=generator)
    half, errors = 2 ** (bits - 1), list[Tensor]()
    low, high = w.amin(-1, keepdim=True).clamp(max=0), w.amax(-1, keepdim=True).clamp(min=0)
    largest = w.abs().amax(-1, keepdim=True)
    for shrink in torch.linspace(1, 0.5, SHRINK).tolist():
        for side in (1, -1) if symmetric else (1,):
            whole = side * largest / half if symmetric else (high - low) / (2 * half - 1)
            scale = (whole * shrink).half().float()
            zero = torch.full_like(scale, half) if symmetric else (-low * shrink / scale).round().clamp(0, 2 * half - 1)
            value = ((w / scale).round() + zero).clamp(0, 2 * half - 1).sub(zero) * scale
            errors.append(((value - w).square() * power).sum(-1))
    best = torch.stack(errors).amin(0).sum()
    grid = fit(w.flatten(1), power.flatten(), bits=bits, group=32, symmetric=symmetric, clip=True)
    codes = grid.codes(w.flatten(1)).unflatten(1, (4, 32))
    found = (((codes - grid.zero[..., None]) * grid.scale[..., None] - w).square() * power).sum()
    assert 0.9999 * best <= found <= 1.01 * best


def gptq_oracle(w: Tensor, x: Tensor, scale: Tensor, bits: int, order: list[int], damp: float) -> Tensor:
    """GPTQ with the inverse Hessian of the remaining columns recomputed at every column."""
    w, h = w.clone().double(), (x.T @ x / len(x)).double()
    h += damp * h.diagonal().mean() * torch.eye(len(h))
    done = torch.zeros_like(w)
    for n, j in enumerate(order):
        rest = order[n:]
        inverse = torch.linalg.inv(h[rest][:, rest])
        s = scale[:, j].double()
        done[:, j] = (w[:, j] / s).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * s
        error = (w[:, j] - done[:, j]) / inverse[0, 0]
        w[:, rest] -= torch.outer(error, inverse[0])
    return done.float()


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_is_optimal_brain_quantization_column_by_column(data: tuple[Tensor, Tensor], act_order: bool) -> None:
    w, x = data
    result = gptq(Dense(values=w), gram(x), bits=3, group=16, act_order=act_order)
    diagonal = x.square().sum(0)
    order = diagonal.argsort(descending=True, stable=True).tolist() if act_order else list(range(32))
    expected = gptq_oracle(w, x, result.scale.float().repeat_interleave(16, 1), 3, order, 0.01)
    assert (result.dense() - expected).abs().gt(1e-4).float().mean() < 0.01  # a tie may fall the other way


def test_gptq_makes_a_smaller_error_than_rounding(data: tuple[Tensor, Tensor]) -> None:
    w, x = data
    errors = [
        (x @ (w - q.dense()).T).square().sum()
        for q in (gptq(Dense(values=w), gram(x), bits=3, group=16), rtn(Dense(values=w), moments(x), bits=3, group=16))
    ]
    assert errors[0] < 0.8 * errors[1]


def test_blocks_do_not_change_the_sweep() -> None:
    """300 inputs cross two borders between blocks; a wrong update of what lies behind one shows here."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(600, 300, generator=generator) @ (torch.eye(300) + 0.1 * torch.randn(300, 300, generator=generator))
    w = torch.randn(4, 300, generator=generator)
    result = gptq(Dense(values=w), gram(x), bits=4, group=0, act_order=False)
    expected = gptq_oracle(w, x, result.scale.float().expand(-1, 300), 4, list(range(300)), 0.01)
    assert (result.dense() - expected).abs().gt(1e-4).float().mean() < 0.02


def test_the_factor_of_a_gram_is_made_once_for_several_sweeps_and_is_the_same(
    data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    w, x = Dense(values=data[0]), gram(data[1])
    other, made = gram(data[1] + 1), list[Tensor]()
    sweeps = [
        lambda: gptq(w, x, bits=4, group=16),
        lambda: sparsegpt(w, x),
        lambda: gptq(w, x, bits=3, group=16),  # in the order of the first
        lambda: gptq(w, other, bits=3, group=16),
        lambda: gptq(w, other, bits=3, group=16, damp=0.5),
    ]
    alone = [run().dense() for run in sweeps]
    root = sweep.reversed_root
    monkeypatch.setattr(sweep, "reversed_root", lambda h, *given: made.append(h) or root(h, *given))
    with sweep.remembered():
        together = [run().dense() for run in sweeps]
        assert len(sweep.FACTORS.get() or ()) == 2
    assert all(torch.equal(one, same) for one, same in zip(alone, together, strict=True))
    assert [h is x.xtx for h in made] == [True, True, False, False]
    sweeps[0]()
    assert len(made) == 5  # outside nothing is remembered


def test_a_gram_that_is_not_definite_is_damped_until_it_is() -> None:
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(6))  # rank 3
    x[:, 7] = 0
    result = gptq(Dense(values=torch.randn(8, 32)), gram(x), bits=4, group=32, damp=0.0)
    assert result.dense().isfinite().all()


def test_binary_is_the_best_scale_times_the_signs(data: tuple[Tensor, Tensor]) -> None:
    w, x = data
    result = binary(Dense(values=w), gram(x), rounds=0)
    assert isinstance(result, Binary)
    assert torch.equal(result.dense().sign(), torch.where(w >= 0, 1.0, -1.0))
    power, row = x.square().mean(0), 2

    def error(scale: float) -> float:
        return float((power * (w[row] - scale * w[row].sign()).square()).sum())

    best = float(result.scale[row])
    assert error(best) <= min(error(best * 0.99), error(best * 1.01))


def test_kmeans_stops_where_neither_step_helps(data: tuple[Tensor, Tensor]) -> None:
    w, x = data
    power = x.square().mean(0)
    result = kmeans(Dense(values=w), moments(x), bits=2, rows=1, iterations=100)
    codebook = result.codebook.dense()
    for row in range(8):
        distance = (w[row].unsqueeze(1) - codebook[row]).abs()
        assert torch.equal(codebook[row][distance.argmin(1)], result.dense()[row])
        for entry in range(4):
            members = distance.argmin(1) == entry
            if members.any():
                mean = (power * w[row])[members].sum() / power[members].sum()
                torch.testing.assert_close(codebook[row, entry], mean, atol=2e-3, rtol=2e-3)  # stored in float16


def test_kmeans_finds_the_best_codebook_of_a_small_row() -> None:
    """Every division of 8 sorted weights into 2 runs, tried by hand."""
    w = torch.tensor([[-2.0, -1.9, -1.0, 0.1, 0.2, 0.4, 1.5, 1.6]])
    runs = [(w[0, :k], w[0, k:]) for k in range(1, 8)]
    best = min(sum(float((run - run.mean()).square().sum()) for run in pair) for pair in runs)
    found = kmeans(Dense(values=w), Moments.blank(8), bits=1)
    assert float((found.dense() - w).square().sum()) == pytest.approx(best, rel=1e-2)


@pytest.mark.parametrize("rows", [1, 3, 0])
def test_codebooks_are_shared_by_so_many_rows(data: tuple[Tensor, Tensor], rows: int) -> None:
    w, x = data
    result = kmeans(Dense(values=w), moments(x), bits=2, rows=rows)
    books = {1: 8, 3: 3, 0: 1}[rows]
    assert result.codebook.shape == (books, 4)
    for first in range(0, 8, rows or 8):
        assert result.dense()[first : first + (rows or 8)].unique().numel() <= 4


def test_quantizing_shared_weights_keeps_them_shared(data: tuple[Tensor, Tensor]) -> None:
    w, x = data
    shared = kmeans(Dense(values=w), moments(x), bits=4, rows=0)
    result = rtn(shared, moments(x), bits=8)
    assert isinstance(result, Palette)
    assert result.nbytes < shared.nbytes
    assert result.dense().unique().numel() <= 16
    torch.testing.assert_close(result.dense(), shared.dense(), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [({"bits": 9}, "bits=9"), ({"group": 24}, "group=24 does not divide 32 inputs; try 32")],
)
def test_impossible_grids_are_named(data: tuple[Tensor, Tensor], knobs: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        gptq(Dense(values=data[0]), gram(data[1]), **knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_of_8_bits_are_whole_steps_of_a_rows_own(data: tuple[Tensor, Tensor], symmetric: bool) -> None:
    w, x = data
    result = rtn(Dense(values=w), moments(x), bits=3, group=8, symmetric=symmetric, scale_bits=8)
    wide = rtn(Dense(values=w), moments(x), bits=3, group=8, symmetric=symmetric)
    assert wide.nbytes - result.nbytes == 8 * 4 - 8 * 2  # a byte less for each scale, two more for each row
    counts, step = result.parts()["_scale"], result.parts()["_scale_step"]
    assert counts.dtype == torch.int8
    assert (counts != 0).all()
    assert torch.equal(result.scale, counts.float() * step.float())
    literal = torch.empty_like(w)
    for row in range(8):
        for j in range(32):
            zero = 4 if symmetric else int(result.zeros()[row, j // 8])
            grid = [(code - zero) * int(counts[row, j // 8]) * float(step[row]) for code in range(8)]
            literal[row, j] = min(grid, key=lambda point: abs(point - float(w[row, j])))
    torch.testing.assert_close(result.dense(), literal, rtol=1e-5, atol=1e-6)


def test_scales_of_8_bits_lose_little(data: tuple[Tensor, Tensor]) -> None:
    w, x = data
    power = x.square().mean(0)
    errors = [
        ((rtn(Dense(values=w), moments(x), bits=3, group=8, scale_bits=b).dense() - w).square() * power).sum()
        for b in (8, 16)
    ]
    assert errors[0] < 1.05 * errors[1]


def test_other_bits_of_scales_are_refused(data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(RecipeError, match="scale_bits=6 is not possible; choose 16 or 8"):
        rtn(Dense(values=data[0]), moments(data[1]), scale_bits=6)


@pytest.mark.parametrize("damp", [-0.1, float("inf"), float("nan")])
def test_an_impossible_damping_is_named_and_does_not_go_on_for_ever(data: tuple[Tensor, Tensor], damp: float) -> None:
    with pytest.raises(RecipeError, match=f"damp={damp} must be 0 or more"):
        gptq(Dense(values=data[0]), gram(data[1]), group=0, damp=damp)


@pytest.mark.parametrize(("power", "damp"), [(float("nan"), 0.01), (1.0, 1e39), (float("inf"), 0.01)])
def test_damping_does_not_grow_for_ever(data: tuple[Tensor, Tensor], power: float, damp: float) -> None:
    with pytest.raises(RecipeError, match="is too large, or the statistics are no finite numbers"):
        gptq(Dense(values=data[0]), gram(data[1] * power), group=0, damp=damp)
