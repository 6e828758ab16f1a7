"""Codes of gradients: against their literal definitions, and the laws that all keep."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lissom.errors import RecipeError
from lissom.recover.parallel.codes import Code, Integers, Qsgd, Sign, TernGrad, TopK
from lissom.recover.parallel.codes.code import packed, rounded_up, unpacked

CODES: dict[str, Code] = {
    "int8": Integers(bits=8, group=8),
    "int4": Integers(bits=4, group=16),
    "int2": Integers(bits=2, group=8),
    "sign": Sign(group=8),
    "ternary": TernGrad(group=16),
    "qsgd": Qsgd(group=8),
    "qsgd, 2 bits, l2": Qsgd(bits=2, group=16, norm="l2"),
    "topk": TopK(fraction=0.2),
}


def numbers(m: int = 3, c: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-6, 3, m).unsqueeze(1)
    return torch.randn(m, c, generator=generator) * spread


def again(code: Code, x: Tensor, seed: int = 0) -> Tensor:
    return code.decode(code.encode(x, torch.Generator().manual_seed(seed)), x.shape[1])


def above(value: Tensor) -> Tensor:
    """The least bfloat16 that is no less."""
    near = value.bfloat16()
    return (torch.nextafter(near, torch.tensor(math.inf).bfloat16()) if near.float() < value else near).float()


def literal_integers(code: Integers, row: Tensor) -> list[float]:
    found = []
    for group in row.split(code.group):
        scale = above(group.abs().max() / (2 ** (code.bits - 1) - 1))
        found += [float(scale * torch.round(value / scale)) if scale > 0 else 0.0 for value in group]
    return found


def literal_sign(code: Sign, row: Tensor) -> list[float]:
    found = []
    for group in row.split(code.group):
        mean = sum(abs(float(value)) for value in group) / len(group)
        found += [float(torch.tensor(mean).bfloat16()) * (1 if value >= 0 else -1) for value in group]
    return found


def literal_topk(code: TopK, row: Tensor) -> list[float]:
    count = max(1, round(len(row) * code.fraction))
    least = sorted((abs(float(value)) for value in row), reverse=True)[count - 1]
    return [float(value.bfloat16()) if abs(float(value)) >= least else 0.0 for value in row]


@pytest.mark.parametrize(
    ("name", "literal"),
    [
        ("int8", literal_integers),
        ("int4", literal_integers),
        ("int2", literal_integers),
        ("sign", literal_sign),
        ("topk", literal_topk),
    ],
)
def test_what_is_read_again_is_what_the_paper_says(name: str, literal: Callable[..., list[float]]) -> None:
    x = numbers()
    expected = torch.tensor([literal(CODES[name], row) for row in x])
    assert torch.allclose(again(CODES[name], x), expected, rtol=1e-6, atol=0)


def test_large_rows_are_cut_into_blocks_that_sixteen_bits_can_count() -> None:
    code, x = TopK(fraction=0.001), torch.zeros(1, 150_001)
    t, w, k = code.blocks(150_001)
    assert (t, w, k) == (3, 50_001, 50)
    places = torch.tensor([0, 40_000, 50_000, 50_001, 149_999, 150_000])
    x[0, places] = torch.arange(1.0, 7.0)
    assert torch.equal(again(code, x), x)


@pytest.mark.parametrize("code", [TernGrad(group=16, clip=100), Qsgd(group=16), Qsgd(bits=2, group=8, norm="l2")])
def test_what_is_drawn_is_right_on_the_average(code: Code) -> None:
    x, generator = numbers(1, 32)[:, :32], torch.Generator().manual_seed(1)
    many = code.decode(code.encode(x.expand(20_000, -1).contiguous(), generator), 32)
    error = many.std(0) / math.sqrt(len(many))
    assert torch.all((many.mean(0) - x[0]).abs() <= 5 * error + 1e-6 * x.abs().max())


def test_terngrad_draws_zero_or_the_scale_and_clips() -> None:
    x = torch.cat([torch.full((1, 15), 0.1), torch.tensor([[100.0]])], 1)
    sigma = float(x.std(correction=0))
    found = again(TernGrad(group=16), x)
    assert found.max() == above(torch.tensor(2.5 * sigma))  # the one that stands out is cut, and there for sure
    assert set(found.unique().tolist()) <= {0.0, float(found.max())}


def test_qsgd_takes_one_of_the_two_levels_beside() -> None:
    x = numbers(2, 64)
    scale = torch.stack([above(group.abs().max()) for group in x.flatten().split(8)]).repeat_interleave(8).view_as(x)
    levels = (again(CODES["qsgd"], x) / scale * 7).round()
    wanted = x / scale * 7
    assert torch.all((levels - wanted).abs() < 1 + 1e-5)
    exact = torch.tensor([[0.0, 1.0, -1.0, 0.5, 0.25, 0.0, -0.5, 0.75]]) * 7
    assert torch.equal(again(Qsgd(bits=4, group=8), exact.round()), exact.round())  # what lies on a level stays


@pytest.mark.parametrize("name", CODES)
def test_laws(name: str) -> None:
    code, x = CODES[name], numbers()
    before = x.clone()
    first, second = (code.encode(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(x, before)
    assert torch.equal(first, second)
    assert first.dtype == torch.uint8
    assert 8 * first.shape[1] < 32 * x.shape[1]
    assert first.shape == code.encode(torch.zeros_like(x), torch.Generator()).shape
    assert torch.equal(again(code, torch.zeros_like(x)), torch.zeros_like(x))
    assert x.shape[1] % code.align == 0
    if code.forgets:  # nothing is drawn: rows stand by themselves, and what is lost is less than what there was
        assert torch.equal(again(code, x[1:2]), again(code, x)[1:2])
        assert torch.all((x - again(code, x)).norm(dim=1) < x.norm(dim=1))


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_not_read_as_one(name: str, bad: float) -> None:
    x = numbers()
    x[1, 5] = bad
    found = again(CODES[name], x)
    assert not found[1].isfinite().all()
    assert found[[0, 2]].isfinite().all()


@given(bits=st.sampled_from([1, 2, 4, 8]), octets=st.integers(1, 20), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_what_is_packed_is_unpacked(bits: int, octets: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (2, octets * 8 // bits), generator=generator).to(torch.uint8)
    written = packed(codes, bits)
    assert written.shape == (2, octets)
    assert torch.equal(unpacked(written, bits), codes)


@given(st.lists(st.floats(0, 2.0**127, width=32), min_size=1, max_size=9))
def test_scales_are_rounded_up_to_the_next_of_sixteen_bits(values: list[float]) -> None:
    scale = torch.tensor([values])
    found = rounded_up(scale)
    assert torch.equal(found, found.bfloat16().float())
    assert torch.equal(found, torch.stack([above(one) for one in scale[0]]).unsqueeze(0))


def test_knobs_that_cannot_be_are_refused() -> None:
    for code, knobs in ((Integers, {"bits": 3}), (Sign, {"group": 100}), (TernGrad, {"clip": 0.0})):
        with pytest.raises(RecipeError, match=next(iter(knobs))):
            code(**knobs)
    with pytest.raises(RecipeError, match="fraction"):
        TopK(fraction=1.5)
    with pytest.raises(RecipeError, match="norm"):
        Qsgd(norm="l3")
