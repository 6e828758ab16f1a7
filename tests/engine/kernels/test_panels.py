"""Panels: packed without loss, and every kernel that runs here against the definition, for all formats and shapes."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lissom.engine.kernels import native
from lissom.engine.kernels.panels import Grid, PanelLinear, grid_of, packed, panel_layer, spaced, unpacked
from lissom.errors import LissomError
from lissom.formats import Affine, Binary, CompressedLinear, Dynamic, Palette, Ternary, Weight, wrap
from lissom.formats.plane import Plane

BITS = (1, 2, 3, 4, 8)
Make = Callable[[int, int], Weight]


def kept(o: int, i: int, pruned: bool) -> Tensor | None:
    return torch.rand(o, i) < 0.5 if pruned else None


def affine(bits: int, groups: int = 1, *, symmetric: bool = True, pruned: bool = False) -> Make:
    def make(o: int, i: int) -> Affine:
        g = groups if i % groups == 0 else 1
        zero = None if symmetric else torch.randint(2**bits, (o, g), dtype=torch.uint8)
        codes = torch.randint(2**bits, (o, i), dtype=torch.uint8)
        return Affine.of(codes, 0.01 + 0.1 * torch.rand(o, g), zero, bits, kept(o, i, pruned))

    return make


def palette(bits: int, rows: int = 1, *, width: int = 1, scaled: bool = False, pruned: bool = False) -> Make:
    def make(o: int, i: int) -> Palette:
        i = -(-i // width) * width
        books = torch.randn(-(-o // (rows or o)), 2**bits * width)
        scale = 0.1 + torch.rand(o, 1) if scaled else None
        indices = torch.randint(2**bits, (o, i // width), dtype=torch.uint8)
        return Palette.of(indices, books, rows or o, kept(o, i, pruned), width=width, scale=scale)

    return make


def dynamic(bits: int, inputs: int, groups: int = 1) -> Make:
    return lambda o, i: Dynamic(affine=affine(bits, groups)(o, i), inputs=inputs)  # type: ignore[arg-type]


def signs(pruned: bool) -> Make:
    return lambda o, i: Binary.of(torch.rand(o, i) < 0.5, 0.1 + torch.rand(o, 1), kept(o, i, pruned))


def trits(pruned: bool) -> Make:
    codes = lambda o, i: torch.randint(3, (o, i), dtype=torch.uint8)  # noqa: E731
    return lambda o, i: Ternary.of(codes(o, i), 0.1 + torch.rand(o, 1), kept(o, i, pruned))


FORMS: dict[str, Make] = {
    **{f"affine {bits}": affine(bits) for bits in (2, 3, 4, 5, 6, 7, 8)},
    **{f"affine {bits}, zeros": affine(bits, 2, symmetric=False) for bits in (2, 3, 4, 8)},
    **{f"affine {bits}, groups": affine(bits, 4) for bits in (2, 3, 4, 8)},
    "affine 4, pruned": affine(4, 2, pruned=True),
    "affine 3, pruned, zeros": affine(3, 2, symmetric=False, pruned=True),
    **{f"palette {bits}, a book a row": palette(bits) for bits in (1, 2, 3, 4)},
    **{f"palette {bits}, one book": palette(bits, 0, scaled=True) for bits in (2, 3, 4)},
    "palette 4, a book for 8 rows": palette(4, 8),
    "palette 4, a book for 3 rows": palette(4, 3),
    "palette 4, pruned": palette(4, pruned=True),
    "palette 6": palette(6),
    "palette 6, entries of 2": palette(6, 0, width=2, scaled=True),
    "dynamic 8": dynamic(8, 8),
    "dynamic 4, inputs 4, groups": dynamic(4, 4, 2),
    "binary": signs(pruned=False),
    "binary, pruned": signs(pruned=True),
    "ternary": trits(pruned=False),
    "ternary, pruned": trits(pruned=True),
}


def layer(weight: Weight, *, bias: bool = False) -> PanelLinear:
    wrapped = wrap(nn.Linear(weight.shape[1], weight.shape[0], bias=bias), weight).requires_grad_(False)
    assert isinstance(wrapped, CompressedLinear)
    made = panel_layer(wrapped)
    assert made is not None
    return made


def near(found: Tensor, made: PanelLinear, x: Tensor) -> bool:
    """As exact as float32 sums of so many numbers are: the sums of integers inside are."""
    bias = None if made.bias is None else made.bias.transpose(1, 2).flatten()[: made.shape[0]].double()
    inputs, matrix = made.integers(x.float()).double(), made.matrix().double()
    size = nn.functional.linear(inputs.abs(), matrix.abs())
    return bool(((found - nn.functional.linear(inputs, matrix, bias)).abs() <= 1e-6 * size + 1e-6).all())


@settings(max_examples=60)
@given(bits=st.sampled_from(BITS), o=st.integers(1, 70), chunks=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_what_is_packed_is_read_again(bits: int, o: int, chunks: int, seed: int) -> None:
    codes = torch.randint(2**bits, (o, 32 * chunks), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    panels = packed(codes, bits)
    assert panels.shape == (-(-o // 32), chunks, bits * 128)
    assert torch.equal(unpacked(panels, bits)[:o], 2 * codes if bits == 1 else codes)


@pytest.mark.skipif(not native.kernels(), reason="no compiler when lissom was installed: there are no kernels in C")
@settings(max_examples=60)
@given(
    bits=st.sampled_from(BITS),
    o=st.integers(1, 70),
    i=st.sampled_from([32, 48, 96, 200, 256]),
    group=st.sampled_from([8, 16, 32, 64]),
    seed=st.integers(0, 2**32),
)
def test_a_plane_is_packed_in_c_as_its_codes_are_in_pytorch(bits: int, o: int, i: int, group: int, seed: int) -> None:
    group = math.gcd(group, i)
    codes = torch.randint(2**bits, (o, i), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    grid = Grid(codes=Plane.of(codes, bits), bits=bits, scale=torch.ones(o, i // group), zero=0)
    made = PanelLinear(grid, None)
    assert torch.equal(made.codes, packed(spaced(codes, made.group, made.wide), bits))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 4), (7, 48), (33, 128), (64, 200), (70, 544)], ids=str)
def test_panels_hold_the_weight(form: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = FORMS[form](*shape)
    dense, made = weight.dense(), layer(weight)
    assert made.matrix().shape == weight.shape
    cell = torch.zeros(len(dense), 1)
    if isinstance(weight, Palette):  # entries become bytes, in units of the largest that four outputs use at most
        scale = 1 if weight.scale is None else weight.scale.float()
        largest = F.pad((dense / scale).abs().amax(1), (0, -len(dense) % 4)).view(-1, 4).amax(1).repeat_interleave(4)
        cell = largest[: len(dense), None] / 254 * scale
    assert ((made.matrix() - dense).abs() <= 1.001 * cell + 1e-6 * dense.abs()).all()


@pytest.mark.skipif(not native.kernels(), reason="no compiler when lissom was installed: there are no kernels in C")
@settings(max_examples=150)
@given(
    form=st.sampled_from(sorted(FORMS)),
    o=st.integers(1, 130),
    i=st.integers(1, 300),
    rows=st.integers(1, 30),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_every_kernel_computes_its_definition(form: str, o: int, i: int, rows: int, threads: int, seed: int) -> None:
    torch.manual_seed(seed)
    made = layer(FORMS[form](o, i), bias=seed % 2 == 0)
    if seed % 3 == 0:
        made.merge()
    x = torch.randn(rows, made.shape[1]) * torch.rand(rows, 1).exp()
    assert near(made.definition(x), made, x)
    torch.set_num_threads(threads)
    try:
        for kernel in native.kernels():
            assert near(made.run(x, kernel), made, x), kernel
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("kernel", native.kernels())
@pytest.mark.parametrize("form", ["affine 4, groups", "affine 3, zeros", "palette 4, a book a row", "binary"])
def test_a_row_does_not_depend_on_how_many_others_there_are(form: str, kernel: str) -> None:
    torch.manual_seed(0)
    made = layer(FORMS[form](70, 352), bias=True)
    x = torch.randn(400, 352)  # more rows than are multiplied with some panels before the next
    together = made.run(x, kernel)
    for few in (1, 2, 4, 5, 33):
        assert torch.equal(torch.cat([made.run(part, kernel) for part in x.split(few)]), together), few


def test_without_a_compiler_the_definition_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    made = layer(FORMS["affine 4, zeros"](40, 96), bias=True)
    x = torch.randn(2, 3, 96)
    fast = made(x)
    monkeypatch.setattr(native, "kernels", lambda: ())
    assert torch.equal(made(x), made.definition(x))
    torch.testing.assert_close(made(x), fast)


def test_integers_are_those_of_the_formula() -> None:
    """Blocks of at most 128 inputs that share a scale, or of a group, literally; the last of a group may be shorter."""
    torch.manual_seed(0)
    for i, groups, size, merged in (
        *((384, 1, 128, False), (320, 2, 32, False), (192, 1, 64, False), (200, 2, 128, False), (96, 1, 32, False)),
        *((384, 1, 384, True), (320, 2, 160, True), (200, 2, 128, True)),
    ):
        made = layer(affine(4, groups, symmetric=i > 320)(8, i))
        matrix = made.matrix()
        if merged:
            made.merge()
        assert made.block == size
        assert torch.equal(made.matrix(), matrix)
        x = torch.randn(3, i)
        group = i // groups
        for row, found in zip(x.tolist(), made.integers(x).tolist(), strict=True):
            for at in range(0, i, group):
                for start in range(at, at + group, size):
                    block = slice(start, min(start + size, at + group))
                    a = max(abs(value) for value in row[block]) / 127
                    expected = [round(value / a) * a for value in row[block]]
                    assert found[block] == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_dynamic_inputs_are_as_the_format_says() -> None:
    torch.manual_seed(0)
    weight = dynamic(8, 4, 3)(20, 192)
    x = torch.randn(9, 192)
    made = layer(weight)
    torch.testing.assert_close(made.integers(x), weight.activate(x))
    torch.testing.assert_close(made(x), weight.linear(weight.activate(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64,), (2, 5, 64), (0, 64)], ids=str)
def test_the_answer_has_the_type_and_shape_of_the_question(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    found = layer(FORMS["affine 4"](16, 64), bias=True)(torch.randn(shape).to(dtype))
    assert found.dtype == dtype
    assert found.shape == (*shape[:-1], 16)


def test_a_pruned_weight_is_silent() -> None:
    codes, there = torch.randint(16, (16, 64), dtype=torch.uint8), torch.ones(16, 64, dtype=torch.bool)
    there[:, :32] = False
    x = torch.cat([torch.full((2, 32), 1e4), torch.zeros(2, 32)], dim=1)
    for bits in (8, 4):
        assert (layer(Affine.of(codes, torch.ones(16, 2), None, bits, there))(x) == 0).all()


def test_scales_may_be_tiny_or_of_very_different_size() -> None:
    scale = torch.tensor([[1e-30, 3e-30], [2e20, 1e20], [0.0, 0.0], [-1e-3, 2.0]])
    grid = Grid(codes=torch.randint(16, (4, 64), dtype=torch.uint8), bits=4, scale=scale, zero=8)
    made = PanelLinear(grid, None)
    expected = (grid.codes.float() - 8) * scale.repeat_interleave(32, 1)
    torch.testing.assert_close(made.matrix(), expected, rtol=1e-3, atol=0)
    assert torch.isfinite(made(torch.randn(3, 64))).all()


@pytest.mark.parametrize("kernel", native.kernels())
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stays_none_and_in_its_row(kernel: str, wrong: float) -> None:
    made = layer(FORMS["affine 4, groups"](40, 128))
    x = torch.randn(7, 128)
    clean = made.run(x, kernel)
    x[3, 50] = wrong
    found = made.run(x, kernel)
    assert found[3].isnan().all()
    assert torch.equal(torch.cat([found[:3], found[4:]]), torch.cat([clean[:3], clean[4:]]))


def test_moving_and_casting_the_model_leaves_what_kernels_read() -> None:
    made = layer(FORMS["affine 4, zeros"](40, 96), bias=True)
    x = torch.randn(3, 96)
    expected = made(x)
    model = nn.Sequential(made).bfloat16().double().half()
    assert made.scale.dtype == torch.float16
    assert made.unit.dtype == torch.float32
    assert torch.equal(model(x), expected)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    made.scale = made.scale * 2  # a tensor that lies elsewhere
    made.bias = None
    torch.testing.assert_close(made(x), made.definition(x))
    assert not torch.allclose(made(x), expected)


def test_inputs_that_do_not_fit_are_refused() -> None:
    made = layer(FORMS["affine 4"](40, 96))
    with pytest.raises(LissomError, match="a layer of 96 inputs on the CPU was given 95 on cpu"):
        made(torch.randn(3, 95))
    with pytest.raises(LissomError, match="given 96 on meta"):
        made(torch.randn(3, 96, device="meta"))


def test_other_weights_are_no_grid() -> None:
    from lissom.formats import Dense

    assert grid_of(Dense(values=torch.randn(4, 4))) is None
    assert grid_of(dynamic(8, 12)(4, 32)) is None


def test_a_library_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.INSTEAD, "/no/such/library")
    found: Any = native.library.__wrapped__
    with pytest.raises(OSError, match="no/such/library"):
        found()
